#!/bin/sh
# Installs the servers that the tests talk to, and a browser, where they are missing and where this is allowed (Debian or Ubuntu, as root
# or with a sudo that asks nothing). Starts none of them and leaves none running: the tests run copies of their own. Always ends well:
# what stays missing is named here, and pytest skips just the tests that need it (or fails them, if CI=true).
#
# Usage: install_servers.sh [PACKAGE...], by default what the tests need.
set -u

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
for programs in /usr/lib/postgresql/*/bin; do PATH="$PATH:$programs"; done
POLICY=/usr/sbin/policy-rc.d

[ $# -gt 0 ] || set -- bind9 bind9-dnsutils unbound redis-server nginx postgresql chromium chromium-driver
wanted=$*

missing_packages() {
    for package in $wanted; do
        case $package in
            bind9) program=named ;;
            bind9-dnsutils) program=nsupdate ;;
            postgresql) program=postgres ;;
            mariadb-server) program=mariadbd ;;
            dovecot-imapd) program=dovecot ;;
            chromium-driver) program=chromedriver ;;
            *) program=$package ;;
        esac
        command -v "$program" >/dev/null || echo "$package"
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -o DPkg::Lock::Timeout=120 "$@"
}

install_packages() {
    apt install --yes --no-install-recommends "$@"
}

# Packages start what they install unless this file says 101. A machine that has such a file keeps its own.
forbid_starts() {
    [ -e "$POLICY" ] && ! grep -q geventconnpool/tests "$POLICY" && return
    policy_is_ours=yes
    printf '#!/bin/sh\n# Written by geventconnpool/tests/install_servers.sh, which removes it again.\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}

allow_starts() {
    [ -z "$policy_is_ours" ] || as_root rm -f "$POLICY"
    policy_is_ours=
}

# Where a file of the machine's own let them start. None of these ran before: they were not there.
stop_installed() {
    for package in $1; do
        case $package in
            bind9) service=named ;;
            mariadb-server) service=mariadb ;;
            dovecot-imapd) service=dovecot ;;
            unbound | redis-server | haproxy | nginx | memcached | postgresql) service=$package ;;
            *) continue ;;
        esac
        ! command -v systemctl >/dev/null || as_root systemctl --quiet disable "$service" >/dev/null 2>&1
        ! as_root service "$service" status >/dev/null 2>&1 || as_root service "$service" stop >/dev/null 2>&1
    done
}

install() {
    log=$(mktemp)
    policy_is_ours=
    trap allow_starts EXIT
    trap 'exit 130' INT TERM HUP
    forbid_starts
    echo "installing:" $1
    { apt update; install_packages $1 || for package in $1; do install_packages "$package"; done; } >"$log" 2>&1 </dev/null || tail -n 5 "$log"
    stop_installed "$1"
    rm -f "$log"
}

packages=$(missing_packages)
[ -z "$packages" ] || ! may_install || install "$packages"
for package in $(missing_packages); do
    echo "missing: Debian package $package; what needs it is left out"
done
exit 0

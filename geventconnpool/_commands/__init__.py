"""The command line: ``python -m geventconnpool``, or ``geventconnpool``.

Each command has a module with a function ``run(options, output)`` that returns the exit status. What is done in gevent
is apart from what is made of it, text or JSON, which functions of values decide.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn, TextIO

from geventconnpool import __version__
from geventconnpool._commands import _help

BAD_USAGE = 2
UNREAD = 128 + 13  # what a shell says of a program that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` say, those of the program by default; return the exit status."""
    from geventconnpool._commands._output import end_with_signals

    end_with_signals()
    try:
        try:
            return perform(arguments)
        finally:
            _flush()
    except BrokenPipeError:
        _forget_stdout()  # else the interpreter would write what is left when it ends
        return UNREAD
    except OSError as error:
        _forget_stdout()
        _open(sys.stderr).write(f"geventconnpool: error: {error.strerror or error}\n")
        return BAD_USAGE


def perform(arguments: Sequence[str] | None) -> int:
    """Do the same, and leave signals and what cannot be written to others. Raises SystemExit for bad usage."""
    from geventconnpool._commands._output import Output

    options = _parser().parse_args(arguments)
    command = import_module(f"geventconnpool._commands.{options.module}")
    output = Output(_open(sys.stdout), _open(sys.stderr), as_json=options.json)
    try:
        return int(command.run(options, output))
    except ValueError as error:
        return int(options.parser.error(str(error)))


def _open(stream: TextIO | None) -> TextIO:
    """Return a stream, or where nobody reads if it was closed before the start (``2>&-``)."""
    return stream or open(os.devnull, "w")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: error: {message} ({self.prog} --help tells more)\n")


def _parser() -> Parser:
    parser = _described(Parser(prog="geventconnpool", formatter_class=argparse.RawDescriptionHelpFormatter), "main")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    for name, add in _OPTIONS.items():
        summary = getattr(_help, name.upper())[0].rstrip(".")
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        _described(command, name)
        command.set_defaults(module=f"_{name}", parser=command)
        add(command)
        command.add_argument("--json", action="store_true", help=_help.JSON[name])
    return parser


def _described(parser: Parser, name: str) -> Parser:
    summary, more, parser.epilog = getattr(_help, name.upper())
    parser.description = f"{summary}\n\n{textwrap.fill(more, 79)}"
    return parser


def _version() -> str:
    import dns.version
    import gevent

    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"geventconnpool {__version__} (gevent {gevent.__version__}, dnspython {dns.version.version}, Python {python})"
    )


def _options_of_resolve(parser: Parser) -> None:
    _name(parser)
    _timeout(parser, 5.0, "for all tries at one question to DNS, in seconds (default: 5)")


def _options_of_check(parser: Parser) -> None:
    _name(parser)
    _timeout(parser, 10.0, "for everything together, in seconds (default: 10)")
    parser.add_argument(
        "--count", metavar="N", type=_whole, default=5, help="connections to each endpoint, one after the other (5)"
    )
    parser.add_argument("--tls", action="store_true", help="with a TLS handshake, which verifies the certificate")
    parser.add_argument(
        "--tls-name",
        metavar="domain|target|NAME",
        help="the name that certificates must have: of the service without its _service._proto (domain, the default), "
        "of the endpoint (target), or any other",
    )
    parser.add_argument("--ca-file", metavar="FILE", help="trust the authorities in this file, not those of the system")


def _options_of_watch(parser: Parser) -> None:
    _name(parser)
    _timeout(parser, 5.0, "for all tries at one question to DNS, in seconds (default: 5)")
    parser.add_argument("--for", dest="seconds", metavar="SECONDS", type=_seconds, help="end after so long")
    for option, default, what in (
        ("--min-refresh", 5.0, "between two look-ups at least"),
        ("--max-refresh", 300.0, "between two look-ups at most"),
        ("--empty-hold", 30.0, 'until "there is no such name" is believed'),
    ):
        parser.add_argument(
            option, metavar="SECONDS", type=_seconds, default=default, help=f"{what}, as in DNSResolver ({default:g})"
        )


def _options_of_demo(parser: Parser) -> None:
    parser.add_argument("--play", action="store_true", help="play the scenes, as where there is no terminal")


# Not named like the modules, which become attributes of this one when they are loaded.
_OPTIONS = {
    "resolve": _options_of_resolve,
    "check": _options_of_check,
    "watch": _options_of_watch,
    "demo": _options_of_demo,
}


def _name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="+", help=_help.NAME)
    parser.add_argument(
        "--nameserver",
        metavar="ADDRESS[:PORT]",
        type=nameserver,
        action="append",
        help="ask this name server; may be given several times (default: those of resolv.conf)",
    )


def _timeout(parser: Parser, default: float, what: str) -> None:
    parser.add_argument("--timeout", metavar="SECONDS", type=_positive, default=default, help=what)


def _typed(convert: Callable[[str], float], text: str, is_right: Callable[[float], bool], wanted: str) -> float:
    try:
        value = convert(text)
    except ValueError:
        value = -1.0
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def _positive(text: str) -> float:
    return _typed(float, text, lambda value: 0 < value <= 1e6, "a number of seconds above 0")


def _seconds(text: str) -> float:
    return _typed(float, text, lambda value: 0 <= value <= 1e9, "a number of seconds")


def _whole(text: str) -> int:
    return int(_typed(int, text, lambda value: 1 <= value <= 1000, "a number from 1 to 1000"))


def nameserver(text: str) -> tuple[str, int]:
    """Return (address, port) of ``10.0.0.53``, ``10.0.0.53:5353``, ``::1`` or ``[::1]:5353``."""
    from geventconnpool.cluster._endpoints import canonical_ip, parse_service

    try:
        if address := canonical_ip(text[1:-1] if text.startswith("[") and text.endswith("]") else text):
            return address, 53
        address, port = parse_service(text)
        if port is not None and canonical_ip(address):
            return address, port
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not an IP address, with or without a port")

"""SMTP through smtplib: a relay, or several that take the same mail."""

import smtplib

from geventconnpool import ClusterPool, ConnectionPool, retry


class InDoubt(smtplib.SMTPException):
    """The relay was lost when it had been given a mail, before it said whether it takes it."""


ERRORS = (smtplib.SMTPServerDisconnected, InDoubt)


class Session(smtplib.SMTP):
    """Knows whether a mail has been begun, and what 421 means."""

    has_begun = False

    def getreply(self):
        code, answer = super().getreply()
        if code == 421:
            self.close()
            raise smtplib.SMTPServerDisconnected(f"421 {answer.decode(errors='replace')}")
        return code, answer

    def mail(self, sender, options=()):
        self.has_begun = True
        return super().mail(sender, options)

    def data(self, msg):
        try:
            reply = super().data(msg)
        except smtplib.SMTPServerDisconnected as error:
            raise InDoubt("the relay may have taken the mail, or not") from error
        self.has_begun = False
        return reply

    def rset(self):
        reply = super().rset()
        self.has_begun = False
        return reply


class EndpointSession(Session):
    """Leads to the addresses of an endpoint, and verifies its name."""

    def __init__(self, endpoint, own_name):
        self._endpoint = endpoint
        super().__init__(endpoint.name, endpoint.port, own_name, timeout=30)

    def _get_socket(self, host, port, timeout):
        return self._endpoint.connect(timeout)


def begin(session, tls, login):
    try:
        if tls is not None:
            session.starttls(context=tls)
        if login is not None:
            session.login(*login)
        session.ehlo_or_helo_if_needed()
    except BaseException:
        session.close()
        raise
    return session


class Parts:
    """What both kinds of pool have in common."""

    def _is_connection_error(self, exc):
        if isinstance(exc, smtplib.SMTPException):
            return isinstance(exc, ERRORS)
        return super()._is_connection_error(exc)

    def _keepalive(self, session):
        code, answer = session.noop()
        if code != 250:
            raise smtplib.SMTPResponseException(code, answer)

    def _close_connection(self, session):
        session.quit()

    def _abort_connection(self, session):
        session.close()

    def _is_reusable(self, session):
        return session.sock is not None and not session.has_begun

    def _fileno(self, session):
        return session.sock.fileno()


class SMTPPool(Parts, ConnectionPool):
    def __init__(self, host, port, own_name, size, keepalive=30, *, tls=None, login=None, **options):
        super().__init__(size, OSError, keepalive, **options)
        self._place = host, port, own_name
        self._tls, self._login = tls, login

    def _new_connection(self):
        return begin(Session(*self._place, timeout=30), self._tls, self._login)


class SMTPRelays(Parts, ClusterPool):
    def __init__(self, service, own_name, size, keepalive=30, *, tls=None, login=None, **options):
        super().__init__(service, size, OSError, keepalive, **options)
        self._own_name = own_name
        self._tls, self._login = tls, login

    def _new_connection(self, endpoint):
        return begin(EndpointSession(endpoint, self._own_name), self._tls, self._login)


@retry(exc_classes=smtplib.SMTPServerDisconnected, max_failures=3, interval=0.05, backoff=2.0)
def send(pool, message):
    """Give an ``email.message.EmailMessage`` to a relay, and to another one if the first one is lost before."""
    with pool.get() as session:
        return session.send_message(message)

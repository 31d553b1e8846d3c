"""The WSGI application as uWSGI takes it, which does not run ``atexit`` in its gevent workers."""

import uwsgi  # type: ignore[import-untyped]  # it exists inside uWSGI only

from tests.apps.wsgi import application, close

__all__ = ["application"]

uwsgi.atexit = close

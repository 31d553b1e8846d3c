"""The configuration of gunicorn: read by the master before anything else, the application included."""

import os
import sys
from typing import Any

if os.environ["MASTER"] == "patched":
    from gevent import monkey

    monkey.patch_all()

bind = "127.0.0.1:0"
workers = 2
worker_class = "gevent"
control_socket = os.environ["CONTROL_SOCKET"]


def worker_exit(server: Any, worker: Any) -> None:
    """Say goodbye: called in the worker, after its last request."""
    close_pools()


def on_exit(server: Any) -> None:
    """The same in the master, which has pools of its own if it has loaded the application."""
    close_pools()


def close_pools() -> None:
    application = sys.modules.get("tests.apps.wsgi")
    if application is not None:
        application.close()

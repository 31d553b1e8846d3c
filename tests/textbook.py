"""The pool as textbooks have it, and as this package had it in 2013, to compare with: a semaphore counts what is free,
a deque holds it, a generator is a lease, and whatever fails is tried again later by a greenlet of its own.

What is wrong with it is wrong on purpose: ``test_differential.py`` says what, and what must stay as it was.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore

running: list[Any] = []  # greenlets of all pools, which have no end of their own


class ConnectionPool:
    SPAWN_FREQUENCY = 0.1  # seconds between the first connects
    REPLACE_AFTER = 1.0  # seconds until a discarded connection is replaced
    FIRST_PAUSE, LONGEST_PAUSE = 0.1, 400.0  # seconds until a connect is tried again

    def __init__(self, size, exc_classes=(socket.error,), keepalive=None):
        self.size, self.exc_classes, self.keepalive = size, tuple(exc_classes), keepalive
        self.conn = deque()
        self.lock = BoundedSemaphore(size)
        for number in range(size):
            self.lock.acquire()
            running.append(gevent.spawn_later(self.SPAWN_FREQUENCY * number, self._open_one))
        if keepalive:
            running.append(gevent.spawn(self._keep_all_alive))

    def _new_connection(self):
        raise NotImplementedError

    def _keepalive(self, c):
        raise NotImplementedError

    @contextmanager
    def get(self):
        self.lock.acquire()
        c = self.conn.popleft()
        try:
            yield c
        except self.exc_classes:
            running.append(gevent.spawn_later(self.REPLACE_AFTER, self._open_one))
            raise
        except BaseException:
            self._put_back(c)
            raise
        else:
            self._put_back(c)

    def _put_back(self, c):
        self.conn.append(c)
        self.lock.release()

    def _open_one(self):
        pause = self.FIRST_PAUSE
        c = self._new_connection()
        while not c:
            gevent.sleep(pause)
            pause = pause * 2 if pause < self.LONGEST_PAUSE else pause
            c = self._new_connection()
        self._put_back(c)

    def _keep_all_alive(self):
        while True:
            gevent.sleep(self.keepalive / self.size)
            try:
                with self.get() as c:
                    self._keepalive(c)
            except self.exc_classes:
                pass


def retry(
    f,
    exc_classes=(socket.error,),
    logger=None,
    retry_log_level=logging.INFO,
    retry_log_message="retrying {f} after {e}",
    max_failures=None,
    interval=0,
    max_failure_log_level=logging.ERROR,
    max_failure_log_message="giving up on {f} after {e}",
):
    exc_classes = tuple(exc_classes)

    @wraps(f)
    def retrying(*args, **kwargs):
        failures = 0
        while True:
            try:
                return f(*args, **kwargs)
            except exc_classes as e:
                failures += 1
                gives_up = max_failures is not None and failures > max_failures
                if logger is not None:
                    level = max_failure_log_level if gives_up else retry_log_level
                    message = max_failure_log_message if gives_up else retry_log_message
                    logger.log(level, message.format(f=f.func_name, e=e))
                if gives_up:
                    raise
            gevent.sleep(interval)

    return retrying

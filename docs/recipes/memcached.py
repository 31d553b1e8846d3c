"""memcached through pymemcache."""

from pymemcache import MemcacheUnexpectedCloseError, MemcacheUnknownError
from pymemcache.client.base import Client

from geventconnpool import ClusterPool, ConnectionPool

ERRORS = (OSError, MemcacheUnexpectedCloseError, MemcacheUnknownError)


def connect(host, port):
    client = Client((host, port), connect_timeout=2, timeout=5, no_delay=True)
    client.version()
    return client


class Parts:
    """What both kinds of pool have in common."""

    def _keepalive(self, client):
        client.version()

    def _close_connection(self, client):
        client.quit()

    def _abort_connection(self, client):
        client.close()

    def _is_reusable(self, client):
        return client.sock is not None

    def _fileno(self, client):
        return client.sock.fileno()


class MemcachedPool(Parts, ConnectionPool):
    def __init__(self, host, port, size, keepalive=30, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self.address = host, port

    def _new_connection(self):
        return connect(*self.address)


class MemcachedCluster(Parts, ClusterPool):
    """Of servers that all hold the same, such as proxies (mcrouter); not to spread keys over."""

    def __init__(self, service, size, keepalive=30, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)

    def _new_connection(self, endpoint):
        return connect(endpoint.host, endpoint.port)

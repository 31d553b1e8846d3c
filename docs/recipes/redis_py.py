"""Redis through redis-py: one server, and the replicas of one to read from."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from geventconnpool import ClusterPool, ConnectionPool

ERRORS = (redis.ConnectionError, redis.TimeoutError)


def connect(host, port):
    only = redis.ConnectionPool(
        host=host,
        port=port,
        max_connections=1,
        socket_connect_timeout=2,
        socket_timeout=5,
        retry=Retry(NoBackoff(), 0),
    )
    client = redis.Redis.from_pool(only)
    client.ping()
    return client


class Parts:
    """What both kinds of pool have in common."""

    def _keepalive(self, client):
        client.ping()

    def _close_connection(self, client):
        client.close()

    def _is_reusable(self, client):
        (_, _), (used, _) = client.connection_pool.get_connection_count()
        return used == 0

    def _fileno(self, client):
        connection = client.connection_pool.get_connection()
        try:
            return connection._sock.fileno()
        finally:
            client.connection_pool.release(connection)


class RedisPool(Parts, ConnectionPool):
    def __init__(self, host, port, size, keepalive=30, **options):
        super().__init__(size, ERRORS, keepalive, **options)
        self.host = host
        self.port = port

    def _new_connection(self):
        return connect(self.host, self.port)


class RedisReplicas(Parts, ClusterPool):
    def __init__(self, service, size, keepalive=30, **options):
        super().__init__(service, size, ERRORS, keepalive, **options)

    def _new_connection(self, endpoint):
        return connect(endpoint.host, endpoint.port)

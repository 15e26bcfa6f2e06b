"""A cache that several gateways share."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis.asyncio
from pydantic import SecretStr
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from latentforge.core.settings import SettingsError
from latentforge.gateway.cache.base import CHECK_KEY, CacheError, Patience, StoreStats, WritesRefusedError

T = TypeVar("T")

_PREFIX = b"latentforge:rows:"
_KEYS_PER_READ = 32
# A lookup takes a few milliseconds; on a machine with five busy processes per core a few per thousand took 25.
_LEAST_LOOKUP_SECONDS = 0.05


@dataclass(frozen=True)
class RedisWaits:
    """Seconds that are waited: a cache that is slower is worse than none. redis-py's own patience is up to 55 s a call.

    Attributes:
        connect: for a connection.
        answer: for what is sent or received next.
        lookup: by a call for a whole lookup, at most.
    """

    connect: float
    answer: float
    lookup: float


class RedisCache:
    """Redis with expiring entries. Only keys under the gateway's prefix are ever touched.

    Args:
        url: of CACHE_URL; of it errors say host and port alone.
        ttl_seconds: how long an entry lives.
        waits: seconds that are waited for the server.

    Raises:
        SettingsError: redis-py does not take an option in the URL.
    """

    kind: str = "redis"

    def __init__(self, url: SecretStr, ttl_seconds: int, waits: RedisWaits) -> None:
        self._ttl_seconds = ttl_seconds
        self.patience = Patience(min(_LEAST_LOOKUP_SECONDS, waits.lookup), waits.lookup)
        try:
            options: Any = parse_url(url.get_secret_value())
            self._redis = self._client(
                url.get_secret_value(),
                socket_connect_timeout=waits.connect,
                socket_timeout=waits.answer,
                # Once, for a connection that the server closed meanwhile; what was too slow is too slow again.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )
        except (RedisError, RedisClusterException, TypeError, ValueError, OSError):
            # Their texts quote the URL's options, of which one may be the password.
            raise SettingsError("CACHE_URL has an option after ? that Redis's client does not take") from None
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        self._name = f"{self.kind} at {f'[{host}]' if ':' in host else host}:{port}"
        self._secrets = [secret for secret in (options.get("password"), options.get("username")) if secret]

    def _client(self, url: str, **options: Any) -> Any:
        client: Any = redis.asyncio.from_url(url, **options)
        # Connects to nothing; else a wrong option would show at the first lookup.
        client.connection_pool.make_connection()
        return client

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        async def get() -> list[bytes | None]:
            found: list[bytes | None] = []
            for start in range(0, len(keys), _KEYS_PER_READ):
                part = [_PREFIX + key for key in keys[start : start + _KEYS_PER_READ]]
                found += await self._read(part)
            return found

        return await self._guarded(get)

    async def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return cast("list[bytes | None]", await self._redis.mget(keys))

    def used(self, key: bytes) -> None:
        """Nothing: the server counts what it is asked for, and a call for each answer from memory would cost more."""

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        async def put() -> None:
            failures = await self._write(entries)
            if any(isinstance(failure, ReadOnlyError) for failure in failures):
                # After a failover what is connected still leads to the old server, which is a replica now; the address
                # leads to the new one.
                await self._reconnect()
                failures = await self._write(entries)
            if refusals := [
                f for f in failures if isinstance(f, ResponseError) and not isinstance(f, ClusterDownError)
            ]:
                raise WritesRefusedError(self._said(refusals[0]))
            if failures:
                raise failures[0]

        await self._guarded(put)

    async def _write(self, entries: Mapping[bytes, bytes]) -> list[Exception]:
        """What the server said no to."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, value in entries.items():
                pipeline.set(_PREFIX + key, value, ex=self._ttl_seconds)
            # Raised by the pipeline, an error would quote its command, entry and all.
            results = await pipeline.execute(raise_on_error=False)
        return [result for result in results if isinstance(result, Exception)]

    async def _reconnect(self) -> None:
        """What is asked from here on goes over new connections; lookups under way end over theirs."""
        await self._redis.connection_pool.disconnect(inuse_connections=False)

    async def check(self) -> None:
        await self.put_many({CHECK_KEY: b""})
        await self._guarded(lambda: self._redis.unlink(_PREFIX + CHECK_KEY))

    async def stats(self) -> StoreStats:
        """All of the database's entries and the server's memory: counting our own would read every key."""

        async def count() -> StoreStats:
            memory = await self._redis.info("memory")
            return StoreStats(int(await self._redis.dbsize()), int(memory["used_memory"]))

        return await self._guarded(count)

    async def clear(self) -> int:
        async def clear() -> int:
            removed = 0
            part: list[bytes] = []
            async for key in self._redis.scan_iter(match=_PREFIX + b"*", count=1000):
                part.append(key)
                if len(part) == 500:
                    removed += await self._redis.unlink(*part)
                    part = []
            if part:
                removed += await self._redis.unlink(*part)
            return removed

        return await self._guarded(clear)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _guarded(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except (RedisError, RedisClusterException, OSError, TimeoutError, UnicodeError) as error:
            raise CacheError(self._said(error)) from None

    def _said(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        if self.kind == "redis" and isinstance(error, ClusterCrossSlotError | MovedError):
            text += "; it is a node of a Redis Cluster: write redis+cluster:// in CACHE_URL"
        # A server may repeat the name of a user that it refuses, and passwords were put there.
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return f"{self._name}: {text}"

"""The stores of CACHE_URL behind one interface."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from latentforge.gateway.cache.base import Cache, Patience, StoreStats
from latentforge.gateway.cache.redis_cache import RedisCache, RedisWaits
from latentforge.gateway.cache.redis_cluster_cache import RedisClusterCache
from latentforge.gateway.cache.sqlite_cache import SqliteCache
from latentforge.gateway.settings import GatewaySettings


class NoCache:
    """CACHE_URL=none: nothing is kept."""

    kind = "none"
    patience = Patience(1.0, 1.0)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [None] * len(keys)

    def used(self, key: bytes) -> None:
        pass

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        pass

    async def check(self) -> None:
        pass

    async def stats(self) -> StoreStats:
        return StoreStats(0, 0)

    async def clear(self) -> int:
        return 0

    async def close(self) -> None:
        pass


def open_cache(settings: GatewaySettings) -> Cache:
    """The store of CACHE_URL. It is connected to when first used, and a store that is down is no error here.

    Raises:
        SettingsError: CACHE_URL has an option that its store does not know.
    """
    url = settings.cache_url.get_secret_value()
    if url.startswith("sqlite:///"):
        return SqliteCache(Path(url.removeprefix("sqlite:///")), max_bytes=settings.cache_max_mb << 20)
    if url == "none":
        return NoCache()
    waits = RedisWaits(
        connect=settings.cache_connect_seconds,
        answer=settings.cache_answer_seconds,
        lookup=settings.cache_lookup_seconds,
    )
    if "+cluster://" in url.partition("@")[0]:
        return RedisClusterCache(settings.cache_url, settings.cache_ttl_seconds, waits)
    return RedisCache(settings.cache_url, settings.cache_ttl_seconds, waits)

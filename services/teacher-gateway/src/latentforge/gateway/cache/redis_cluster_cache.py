"""A cache over several Redis servers, where one machine's memory is not enough."""

from collections.abc import Sequence
from typing import Any, cast

from pydantic import SecretStr
from redis.asyncio.cluster import RedisCluster

from latentforge.gateway.cache.base import StoreStats
from latentforge.gateway.cache.redis_cache import RedisCache, RedisWaits


class RedisClusterCache(RedisCache):
    """As a :class:`RedisCache`, on a Redis Cluster.

    Keys have no hash tag: an entry is one key, no command needs two of them on one server, and so they spread over
    all. The client learns from the node of CACHE_URL which others there are, and anew after failures and moves.

    Args:
        url: of any node, with the scheme redis+cluster or rediss+cluster.
        ttl_seconds: how long an entry lives.
        waits: seconds that are waited for a node.

    Raises:
        SettingsError: redis-py does not take an option in the URL.
    """

    kind = "redis-cluster"

    def __init__(self, url: SecretStr, ttl_seconds: int, waits: RedisWaits) -> None:
        super().__init__(SecretStr(url.get_secret_value().replace("+cluster:", ":", 1)), ttl_seconds, waits)

    def _client(self, url: str, **options: Any) -> Any:
        return RedisCluster.from_url(url, **options)

    async def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        # Each server is sent its own keys at once; MGET takes those of one hash slot only.
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.get(key)
            found = await pipeline.execute(raise_on_error=False)
        for value in found:
            if isinstance(value, Exception):
                raise value
        return cast("list[bytes | None]", found)

    async def _reconnect(self) -> None:
        """A node that takes no writes any more names the one that does, and the client follows."""

    async def stats(self) -> StoreStats:
        """As a single server's, summed over those that hold entries."""

        async def count() -> StoreStats:
            entries = await self._redis.dbsize(target_nodes=RedisCluster.PRIMARIES)
            memory = await self._redis.info("memory", target_nodes=RedisCluster.PRIMARIES)
            return StoreStats(int(entries), sum(int(node["used_memory"]) for node in memory.values()))

        return await self._guarded(count)

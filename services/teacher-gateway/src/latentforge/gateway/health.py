"""The standard gRPC health service, kept true: what is SERVING is found out again and again."""

import asyncio
import logging

from grpc_health.v1 import health, health_pb2

from latentforge.gateway.rpc.interceptor import SERVICE
from latentforge.gateway.scoring.teacher import HealthReport, Teacher

logger = logging.getLogger(__name__)

# The process runs and takes calls: whoever would restart it asks this. NOT_SERVING is never its answer.
LIVENESS = "liveness"
# The teacher would answer now: whoever sends it calls, or waits for it to be ready, asks one of these.
READINESS = ("", SERVICE, "readiness")
# Computed rows are kept. Without a cache the gateway works on, so that this is no part of readiness.
CACHE = "cache"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthMonitor:
    """Sets the health service's answers, and says in the log what changed.

    Args:
        seconds: between two checks.

    Attributes:
        servicer: of grpc.health.v1.Health.
    """

    def __init__(self, seconds: float) -> None:
        self.servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._seconds = seconds
        self._last = HealthReport()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The process runs; nothing else does yet."""
        await self.servicer.set(LIVENESS, _SERVING)
        await self._set(ready=False, cache=False)

    async def watch(self, teacher: Teacher) -> None:
        """The teacher is loaded; from now on its checks decide."""
        await self._tell(await teacher.check())
        self._task = asyncio.create_task(self._watch(teacher))

    async def stop(self) -> None:
        """Nothing is ready any more; calls that run are finished yet, so that the process lives."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._set(ready=False, cache=False)

    async def _watch(self, teacher: Teacher) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._tell(await teacher.check())

    async def _tell(self, now: HealthReport) -> None:
        for part, before, problem in (
            ("teacher", self._last.teacher, now.teacher),
            ("cache", self._last.cache, now.cache),
        ):
            if problem and not before:
                logger.warning("not healthy: %s", problem)
            elif before and not problem:
                logger.info("the %s is healthy again", part)
        self._last = now
        await self._set(ready=not now.teacher, cache=not now.cache)

    async def _set(self, *, ready: bool, cache: bool) -> None:
        for name in READINESS:
            await self.servicer.set(name, _SERVING if ready else _NOT_SERVING)
        await self.servicer.set(CACHE, _SERVING if cache else _NOT_SERVING)

"""GET /health, /ready and /status: what the server says of itself."""

from fastapi import APIRouter, Response

from latentforge.core.manifest import describe
from latentforge.inference.operation.drain import Drain
from latentforge.inference.rest.openapi import failures
from latentforge.inference.rest.schemas.status import Health, QuarantinedCheckpoint, Ready, ServerStatus, SwapRecord
from latentforge.inference.rest.services import Services


def health_of(services: Services) -> Health:
    registry, current = services.registry, services.registry.current
    return Health(
        status="ok" if current else "waiting",
        checkpoint=current.id if current else None,
        waiting_for=None if current else registry.waiting_for,
        problem=registry.problem,
        quarantined=[
            QuarantinedCheckpoint(checkpoint=bad.checkpoint, reason=bad.reason, at=bad.at)
            for bad in registry.quarantined
        ],
    )


def status_router(services: Services, drain: Drain) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses=failures(500) | {503: {"model": Health, "description": "It waits for one"}})
    async def health(response: Response) -> Health:
        """200 once a checkpoint is served; 503 before, with what the server waits for."""
        now = health_of(services)
        response.status_code = 200 if now.status == "ok" else 503
        return now

    @router.get("/ready", responses=failures(500) | {503: {"model": Ready, "description": "Not now"}})
    async def ready(response: Response) -> Ready:
        """200 while requests should be sent here; 503 without a checkpoint, or when the server is about to end.

        A full queue is no reason to send them elsewhere for good: 429 says it to each, and for how long.
        """
        current = services.registry.current
        is_ready = current is not None and not drain.begun
        response.status_code = 200 if is_ready else 503
        return Ready(
            ready=is_ready,
            checkpoint=current.id if current else None,
            running=services.engine.running,
            queued=services.engine.queued,
        )

    @router.get("/status", responses=failures(401, 500))
    async def status() -> ServerStatus:
        """The checkpoint that is served, those that are not and why, and every swap."""
        registry, current = services.registry, services.registry.current
        return ServerStatus(
            **health_of(services).model_dump(),
            current=describe(current.manifest) if current else None,
            swaps=[SwapRecord(from_=swap.before, to=swap.after, at=swap.at) for swap in list(registry.swaps)],
            running=services.engine.running,
            queued=services.engine.queued,
            device=str(registry.device),
        )

    return router

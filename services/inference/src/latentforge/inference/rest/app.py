"""The REST API."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from latentforge.core.manifest import describe
from latentforge.inference.checkpoints.registry import Registry
from latentforge.inference.checkpoints.watcher import watch
from latentforge.inference.engine import AsyncEngine
from latentforge.inference.operation.drain import Drain
from latentforge.inference.rest.bodies import BoundedRoute
from latentforge.inference.rest.completion import PromptError, complete
from latentforge.inference.rest.errors import RestError, install_error_handlers
from latentforge.inference.rest.schemas import (
    GenerateRequest,
    GenerateResponse,
    Health,
    QuarantinedCheckpoint,
    Ready,
    ServerStatus,
    SwapRecord,
)
from latentforge.inference.settings import InferenceSettings
from latentforge.model.engine.errors import DeadlineError, EngineFullError, GenerationCancelledError

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""


def create_app(settings: InferenceSettings, registry: Registry, engine: AsyncEngine, drain: Drain) -> FastAPI:
    """The application; while it runs it watches the checkpoints folder, and it closes the engine at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        watching = asyncio.create_task(watch(registry, settings.inference_poll_seconds))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await asyncio.to_thread(engine.close)

    app = FastAPI(title="LatentForge inference", version="0.1.0", lifespan=lifespan)
    app.router.route_class = BoundedRoute
    install_error_handlers(app)

    def health_now() -> Health:
        current = registry.current
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

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """200 once a checkpoint is served; 503 before, with what the server waits for."""
        now = health_now()
        response.status_code = 200 if now.status == "ok" else 503
        return now

    @app.get("/ready", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        """200 while requests should be sent here; 503 without a checkpoint, or when the server is about to end.

        A full queue is no reason to send them elsewhere for good: 429 says it to each, and for how long.
        """
        current = registry.current
        is_ready = current is not None and not drain.begun
        response.status_code = 200 if is_ready else 503
        return Ready(
            ready=is_ready,
            checkpoint=current.id if current else None,
            running=engine.running,
            queued=engine.queued,
        )

    @app.get("/status")
    async def status() -> ServerStatus:
        """The checkpoint that is served, those that are not and why, and every swap."""
        current = registry.current
        return ServerStatus(
            **health_now().model_dump(),
            current=describe(current.manifest) if current else None,
            swaps=[SwapRecord(from_=swap.before, to=swap.after, at=swap.at) for swap in list(registry.swaps)],
            running=engine.running,
            queued=engine.queued,
            device=str(registry.device),
        )

    @app.post("/generate")
    async def generate(body: GenerateRequest, request: Request) -> GenerateResponse:
        """Continues a prompt with the checkpoint that is served when the request arrives."""
        snapshot = registry.current
        if snapshot is None:
            raise RestError(503, "no_checkpoint", f"nothing is loaded yet: the server waits for {registry.waiting_for}")
        try:
            return await _while_connected(request, complete(engine, snapshot, body))
        except PromptError as error:
            raise RestError(400, "context_length_exceeded", str(error), param=error.param) from None
        except EngineFullError as error:
            raise RestError(429, "queue_full", str(error), headers={"retry-after": str(error.retry_after)}) from None
        except DeadlineError as error:
            raise RestError(504, "deadline_exceeded", str(error)) from None
        except GenerationCancelledError as error:
            raise RestError(503, "shutting_down", str(error)) from None
        except ClientGoneError:
            raise RestError(499, "client_gone", "the client hung up") from None

    return app


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits ``work``, cancelled as soon as the client hangs up."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

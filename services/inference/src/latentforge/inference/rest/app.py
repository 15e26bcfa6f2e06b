"""The REST API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from latentforge.inference.engine import AsyncEngine
from latentforge.inference.operation.drain import Drain
from latentforge.inference.rest.bodies import BoundedRoute
from latentforge.inference.rest.chat import chat_router
from latentforge.inference.rest.completions import completions_router
from latentforge.inference.rest.docs import install_docs
from latentforge.inference.rest.errors import install_error_handlers
from latentforge.inference.rest.failures import install_failure_handlers
from latentforge.inference.rest.generate import generate_router
from latentforge.inference.rest.models import models_router
from latentforge.inference.rest.openapi import install_openapi
from latentforge.inference.rest.schemas.chat import ChatChunk
from latentforge.inference.rest.schemas.completions import CompletionAnswer
from latentforge.inference.rest.services import Services
from latentforge.inference.rest.status import status_router
from latentforge.inference.rest.tokenize import tokenize_router
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.registry import Registry
from latentforge.snapshots.watcher import watch


def create_app(settings: InferenceSettings, registry: Registry, engine: AsyncEngine, drain: Drain) -> FastAPI:
    """The application; while it runs it watches the checkpoints folder, and the engine runs."""

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

    app = FastAPI(title="LatentForge inference", version="0.1.0", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.route_class = BoundedRoute
    install_error_handlers(app)
    install_failure_handlers(app)
    services = Services(settings, registry, engine)
    for router in (
        status_router(services, drain),
        generate_router(services),
        models_router(services),
        completions_router(services),
        chat_router(services),
        tokenize_router(services),
    ):
        app.include_router(router)
    install_docs(app)
    install_openapi(app, [CompletionAnswer, ChatChunk])
    return app

"""GET / and what the page asks for besides the API that every client speaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel

from latentforge.inference.page import assets, checkpoints
from latentforge.inference.page.teacher import TeacherAnswer, TeacherJudge, TeacherRequest
from latentforge.inference.page.training import TrainerStatus, TrainingStatus
from latentforge.inference.rest.bodies import BoundedRoute
from latentforge.inference.rest.errors import RestError
from latentforge.inference.rest.openapi import failures
from latentforge.inference.rest.services import Services

# What every POST may be answered.
_POST = (400, 401, 403, 408, 413, 422, 500, 503)
_PIN_FAILURES = failures(*_POST, 404, 409)


class PageConfig(BaseModel):
    """Which panels the page has: the teacher's and the running training's."""

    teacher: bool
    training: bool


def add_page(app: FastAPI, services: Services) -> None:
    """Serves the page and its own API from an application."""
    app.include_router(page_router(services))
    app.mount("/page", assets.PageFiles(), name="page")


def page_router(services: Services) -> APIRouter:
    """The page's routes; with its life ends the connection to the teacher."""
    settings, registry = services.settings, services.registry
    teacher = (
        TeacherJudge(settings.gateway_target, settings.gateway_api_key, settings.gateway_tls_ca)
        if settings.gateway_target
        else None
    )
    trainer = TrainerStatus(settings.inference_trainer_status_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if teacher is not None:
                await teacher.close()

    router = APIRouter(route_class=BoundedRoute, lifespan=lifespan)

    @router.get("/", include_in_schema=False)
    @router.head("/", include_in_schema=False)
    async def page() -> FileResponse:
        return assets.document()

    @router.get("/page/config", responses=failures(500))
    async def config() -> PageConfig:
        """Which panels the page shows."""
        return PageConfig(teacher=teacher is not None, training=trainer.url is not None)

    @router.get("/checkpoints", responses=failures(401, 500))
    async def list_checkpoints() -> checkpoints.CheckpointListing:
        """Every published checkpoint, with its metrics and what is done with it."""
        return await asyncio.to_thread(checkpoints.listing, registry)

    @router.post("/checkpoints/pin", responses=_PIN_FAILURES)
    async def pin(body: checkpoints.PinRequest) -> checkpoints.PinAnswer:
        """Pins a run to one of its checkpoints; the server follows at its next look at the folder."""
        return await asyncio.to_thread(checkpoints.pin, registry, body.checkpoint)

    @router.post("/checkpoints/unpin", responses=_PIN_FAILURES)
    async def unpin(body: checkpoints.UnpinRequest) -> checkpoints.PinAnswer:
        """Lets a run be served at its newest checkpoint again."""
        return await asyncio.to_thread(checkpoints.unpin, registry, body.run)

    @router.get("/training", responses=failures(401, 404, 500, 502, 503))
    async def training() -> TrainingStatus:
        """What the trainer says of the run that it trains now."""
        return await trainer.get()

    @router.post("/teacher", responses=failures(*_POST, 404, 409, 502, 504))
    async def judge(body: TeacherRequest) -> TeacherAnswer:
        """What the teacher makes of a student's text, token by token."""
        if teacher is None:
            raise RestError(
                404, "not_configured", "GATEWAY_TARGET is not set: set it to a teacher-gateway, as localhost:50051"
            )
        return await teacher.judge(await services.snapshot(body.model), body)

    return router

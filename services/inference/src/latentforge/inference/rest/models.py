"""GET /v1/models: what can be asked for by name."""

import math
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path

from latentforge.inference.rest.answers import fingerprint
from latentforge.inference.rest.openapi import LOOKS
from latentforge.inference.rest.prompts import always_fits
from latentforge.inference.rest.schemas.models import ModelCard, ModelList
from latentforge.inference.rest.services import Services
from latentforge.snapshots.registry import SERVED_NAME
from latentforge.snapshots.snapshot import Snapshot


def card(snapshot: Snapshot, name: str) -> ModelCard:
    """A checkpoint under the name that it is asked for by."""
    manifest = snapshot.manifest
    return ModelCard(
        id=name,
        created=int(datetime.fromisoformat(manifest.created).timestamp()),
        root=snapshot.id,
        max_model_len=always_fits(snapshot),
        checkpoint=snapshot.id,
        run=manifest.run,
        step=manifest.step,
        chunk_size=manifest.chunk_size,
        latent_size=manifest.latent_size,
        # JSON knows no others.
        metrics={name: value for name, value in manifest.metrics.items() if math.isfinite(value)},
        system_fingerprint=fingerprint(snapshot),
    )


def models_router(services: Services) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses=LOOKS)
    async def list_models() -> ModelList:
        """The checkpoint that is served, by its id and as latentforge; GET /checkpoints has the others."""
        snapshot = services.registry.current
        names = [] if snapshot is None else [snapshot.id, SERVED_NAME]
        return ModelList(data=[card(snapshot, name) for name in names if snapshot is not None])

    @router.get("/v1/models/{name:path}", responses=LOOKS)
    async def show_model(name: Annotated[str, Path(openapi_examples={"served": {"value": SERVED_NAME}})]) -> ModelCard:
        """A checkpoint by its id, its run's name, or latentforge."""
        return card(await services.snapshot(name), name)

    return router

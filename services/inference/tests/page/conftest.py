from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentforge.core.settings import load_settings
from latentforge.inference.main import build
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.registry import Registry

PageServer = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, Registry]]]


@pytest.fixture
def page_server(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> PageServer:
    """Starts the app with settings; the folder is looked at once before the first request."""
    for name in ("GATEWAY_TARGET", "INFERENCE_TRAINER_STATUS_URL"):
        monkeypatch.delenv(name, raising=False)

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Registry]]:
        fixed = {"checkpoints_dir": checkpoints, "inference_poll_seconds": 3600, "inference_device": "cpu"}
        service = build(load_settings(InferenceSettings, torch_threads=1, **fixed | changes))
        service.registry.refresh()
        transport = httpx.ASGITransport(app=service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://page.test") as client,
        ):
            yield client, service.registry

    return start

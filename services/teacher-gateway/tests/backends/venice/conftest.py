"""The strict local server over real models, and a gateway that takes it for Venice."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latentforge.gateway.backends.venice.backend import VeniceBackend
from latentforge.gateway.main import Gateway
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.client import TeacherClient
from tools.venice_server.app import MODEL, VeniceServer
from tools.venice_server.control import FaultControl
from tools.venice_server.running import serving
from tools.venice_server.text_model import TextModel

KEY = "sk-very-secret"


@dataclass(frozen=True)
class Venice:
    """A running server; ``url`` is what VENICE_BASE_URL must be."""

    server: VeniceServer
    url: str
    folder: Path

    @property
    def control(self) -> FaultControl:
        return self.server.control

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "teacher_backend": "venice",
            "venice_base_url": self.url,
            "venice_api_key": KEY,
            "venice_model": MODEL,
            "tokenizer_path": self.folder,
        }


@pytest.fixture(scope="session")
def stdlib_teacher() -> Path:
    return Path(__file__).parents[5] / "models" / "stdlib-teacher"


def _running(folder: Path, model: TextModel) -> Iterator[Venice]:
    server = VeniceServer(model, FaultControl(key=KEY))
    with serving(server.app) as url:
        yield Venice(server, f"{url}/api/v1", folder)


@pytest.fixture(scope="session")
def _random_model(random_teacher: Path) -> TextModel:
    return TextModel(random_teacher)


@pytest.fixture(scope="session")
def _stdlib_model(stdlib_teacher: Path) -> TextModel:
    return TextModel(stdlib_teacher)


@pytest.fixture
def venice(stdlib_teacher: Path, _stdlib_model: TextModel) -> Iterator[Venice]:
    """Over the teacher that is shipped."""
    yield from _running(stdlib_teacher, _stdlib_model)


@pytest.fixture
def byte_venice(byte_teacher: Path) -> Iterator[Venice]:
    """Over a random teacher of bytes and special tokens."""
    yield from _running(byte_teacher, TextModel(byte_teacher))


@pytest.fixture
def random_venice(random_teacher: Path, _random_model: TextModel) -> Iterator[Venice]:
    """Over the random teacher: of its 300 ids 256 are bytes, 4 are special tokens and 40 have no text."""
    yield from _running(random_teacher, _random_model)


MakeBackend = Callable[..., VeniceBackend]


@pytest.fixture
async def make_backend(make_settings: Callable[..., GatewaySettings]) -> AsyncIterator[MakeBackend]:
    """Backends for a server, not loaded."""
    made: list[VeniceBackend] = []

    def make(venice: Venice, **changes: Any) -> VeniceBackend:
        made.append(VeniceBackend(make_settings(**(venice.settings | changes)), Metrics()))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest.fixture
async def backend(make_backend: MakeBackend, venice: Venice) -> VeniceBackend:
    """For ``venice``, loaded."""
    made = make_backend(venice)
    await made.load()
    return made


RunVenice = Callable[..., AbstractAsyncContextManager[TeacherClient]]


@pytest.fixture
def run_gateway_on(make_settings: Callable[..., GatewaySettings]) -> RunVenice:
    """A gateway whose teacher is a Venice server; gives its client."""

    @asynccontextmanager
    async def run(venice: Venice, **changes: Any) -> AsyncIterator[TeacherClient]:
        gateway = Gateway(make_settings(**(venice.settings | changes)))
        await gateway.start()
        try:
            await gateway.load()
            async with TeacherClient(f"127.0.0.1:{gateway.port}", timeout=60) as client:
                yield client
        finally:
            await gateway.stop()

    return run

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from latentforge.teacher_client.channel import open_aio_channel, open_channel
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def _proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies that answer nobody: nothing listens on port 9."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "dns:///localhost"])
def test_a_gateway_of_this_machine_is_asked_past_every_proxy(port: int, host: str) -> None:
    with open_channel(f"{host}:{port}", retries=False) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_asyncio_channels_do_so_too(port: int) -> None:
    async with open_aio_channel(f"127.0.0.1:{port}", retries=False) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_gateway_elsewhere_that_does_not_answer_names_the_proxy() -> None:
    with (
        SyncTeacherClient("teacher-gateway.example:50051", timeout=10, attempts=1) as client,
        pytest.raises(TeacherError, match=r"grpc_proxy sends .*, no_proxy=teacher-gateway\.example"),
    ):
        client.teacher()

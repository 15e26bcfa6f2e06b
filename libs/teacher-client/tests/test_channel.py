import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from latentforge.teacher_client.channel import open_aio_channel, open_channel
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient


def health_server(pool: ThreadPoolExecutor, port: int, host: str = "127.0.0.1") -> grpc.Server:
    server = grpc.server(pool)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(f"{host}:{port}")
    server.start()
    return server


def serves(channel: grpc.Channel) -> bool:
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.RpcError:
        return False
    return True


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        server = health_server(pool, port)
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
    with open_channel(f"{host}:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_asyncio_channels_do_so_too(port: int) -> None:
    async with open_aio_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_an_ipv6_address_needs_no_brackets(host: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        server = health_server(pool, port, "[::1]")
        with open_channel(f"{host}:{port}") as channel:
            assert serves(channel)
        async with open_aio_channel(f"{host}:{port}") as aio_channel:
            await health_pb2_grpc.HealthStub(aio_channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        server.stop(None).wait()


def test_a_gateway_elsewhere_that_does_not_answer_names_the_proxy() -> None:
    with (
        SyncTeacherClient("teacher-gateway.example:50051", timeout=10, attempts=1) as client,
        pytest.raises(TeacherError, match=r"grpc_proxy sends .*, no_proxy=teacher-gateway\.example"),
    ):
        client.teacher()


def test_a_channel_tries_to_connect_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By gRPC's defaults it waits longer after each time that nobody answered, and tries seven times in 30 seconds."""
    monkeypatch.setattr("latentforge.teacher_client.channel._LONGEST_RECONNECT_MS", 100)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        refusing.settimeout(30)
        with open_channel(f"127.0.0.1:{refusing.getsockname()[1]}") as channel, ThreadPoolExecutor(1) as pool:

            def ask() -> None:
                while not done.wait(0.02):
                    assert not serves(channel)

            asking = pool.submit(ask)
            started = time.monotonic()
            try:
                for _ in range(15):
                    refusing.accept()[0].close()
            finally:
                done.set()
            asking.result()
    assert time.monotonic() - started < 30

"""What a gateway says of itself while its vLLM server is dead, back, or another one."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentforge.gateway.rpc.interceptor import SERVICE
from latentforge.teacher_client.errors import TeacherError

from .conftest import FakeVllm

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def until(stub: Any, status: int) -> None:
    """Waits until the gateway says so, at most 20 s; all that stand for readiness say the same."""
    for _ in range(1000):
        answers = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE, "readiness")]
        alive = await stub.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert alive.status == SERVING
        if all(answer.status == status for answer in answers):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"it never said {status}")


async def test_a_dead_server_is_not_serving_while_it_is_dead(
    gateway_of: Any, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.backends.vllm.server._ATTEMPTS", 1)
    async with (
        gateway_of(server) as (gateway, client),
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        about = await client.teacher()
        assert about.healthy
        assert list(about.problems) == []
        await client.score([5, 6, 7], 2)
        for _ in range(2):
            await until(stub, SERVING)
            server.stop()
            await until(stub, NOT_SERVING)
            about = await client.teacher()
            assert not about.healthy
            assert "VLLM_REMOTE_URL" in about.problems[0]
            assert "cannot be reached" in about.problems[0]
            assert len(await client.score([5, 6, 7], 2)) == 2
            with pytest.raises(TeacherError, match="UNAVAILABLE"):
                await client.score([8, 9, 10], 2)
            server.start()
        await until(stub, SERVING)
        about = await client.teacher()
        assert about.healthy
        assert list(about.problems) == []
        assert len(await client.score([8, 9, 10], 2)) == 2


async def test_another_teacher_is_not_serving_until_the_first_is_back(gateway_of: Any, server: FakeVllm) -> None:
    async with (
        gateway_of(server) as (gateway, client),
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        await until(stub, SERVING)
        server.stop()
        server.slope = 0.06
        server.start()
        await until(stub, NOT_SERVING)
        assert "another teacher than at the gateway's start" in (await client.teacher()).problems[0]
        server.stop()
        server.slope = 0.05
        server.start()
        await until(stub, SERVING)


async def test_a_breaker_that_opened_is_closed_by_a_check_though_nobody_asks(
    gateway_of: Any, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.backends.vllm.server._BREAKER_PAUSE", 0.2)
    monkeypatch.setattr("latentforge.gateway.backends.vllm.server._BREAKER_FAILURES", 8)
    monkeypatch.setattr("latentforge.gateway.backends.vllm.server._ATTEMPTS", 1)
    async with (
        gateway_of(server) as (gateway, client),
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        await until(stub, SERVING)
        server.change = lambda path, asked, answer: (503, b"") if path == "/v1/completions" else answer
        for number in range(8):
            with pytest.raises(TeacherError, match="UNAVAILABLE"):
                await client.score([8, 9, 10 + number], 2)
        await until(stub, NOT_SERVING)
        server.change = lambda path, asked, answer: answer
        await until(stub, SERVING)
        assert len(await client.score([8, 9, 10], 2)) == 2

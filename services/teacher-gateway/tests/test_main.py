import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from latentforge.core.settings import SettingsError
from latentforge.gateway.main import Gateway, serve
from latentforge.gateway.rpc.interceptor import SERVICE
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(target: str, service: str = SERVICE) -> int:
    async with grpc.aio.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
    return int(answer.status)


async def test_health_is_not_serving_until_the_teacher_is_loaded(make_settings: Callable[..., Any]) -> None:
    gateway = Gateway(make_settings())
    await gateway.start()
    target = f"127.0.0.1:{gateway.port}"
    for service in ("", SERVICE):
        assert await health_of(target, service) == NOT_SERVING
    async with TeacherClient(target, timeout=0.5) as client:
        with pytest.raises(TeacherError):
            await client.teacher()
    await gateway.load()
    for service in ("", SERVICE):
        assert await health_of(target, service) == SERVING
    await gateway.stop()


async def test_reflection_lists_the_services_and_describes_ours(running: Any) -> None:
    async with grpc.aio.insecure_channel(running.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert any(b"ScoreBatch" in file for file in described.file_descriptor_response.file_descriptor_proto)


@pytest.mark.slow
async def test_a_client_may_ping_as_often_as_it_likes_while_its_call_waits(
    running: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    """By gRPC's defaults what pings every 10 s is cut off after half a minute; here once a second, its most."""
    about = await running.client.teacher()
    running.backend.gate.clear()
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(running.target, options=options) as channel:
        request = pb.ScoreRequest(tokenizer_fingerprint=about.tokenizer_fingerprint, token_ids=[1, 2, 3], top_k=2)
        scoring = asyncio.ensure_future(TeacherServiceStub(channel).Score(request, timeout=30))
        await eventually(lambda: len(running.backend.scored) == 1)
        await asyncio.sleep(5)
        running.backend.gate.set()
        assert (await scoring).rows.num_rows == 2


class Line:
    """A TCP connection to a gateway that can go dead as when a machine is gone: nothing arrives, nothing is closed."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._dead = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Line":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._dead = True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pass_on(source, sink)))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if not self._dead:
                    sink.write(data)
        finally:
            sink.close()


async def test_a_gateway_whose_machine_is_gone_is_noticed_while_a_call_waits(
    running: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    monkeypatch.setattr("latentforge.teacher_client.channel._KEEPALIVE_MS", 200)
    monkeypatch.setattr("latentforge.teacher_client.channel._PING_TIMEOUT_MS", 200)
    running.backend.gate.clear()
    async with Line(running.target) as line, TeacherClient(line.target, timeout=30, attempts=1) as client:
        scoring = asyncio.ensure_future(client.score([1, 2, 3], 2))
        await eventually(lambda: len(running.backend.scored) == 1)
        line.cut()
        with pytest.raises(TeacherError, match="UNAVAILABLE"):
            await asyncio.wait_for(scoring, 10)
    running.backend.gate.set()


async def test_work_for_a_caller_whose_machine_is_gone_is_cancelled(
    run_gateway: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    monkeypatch.setattr("latentforge.gateway.main._KEEPALIVE_MS", 200)
    monkeypatch.setattr("latentforge.gateway.main._PING_TIMEOUT_MS", 200)
    async with run_gateway() as running:
        running.backend.gate.clear()
        async with Line(running.target) as line, TeacherClient(line.target, timeout=30, attempts=1) as client:
            scoring = asyncio.ensure_future(client.score([1, 2, 3], 2))
            await eventually(lambda: len(running.backend.scored) == 1)
            line.cut()
            await eventually(lambda: running.backend.cancelled == 1)
            scoring.cancel()


async def test_a_port_that_is_taken_is_an_error_that_names_it(running: Any, make_settings: Callable[..., Any]) -> None:
    port = running.gateway.port
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}; set GATEWAY_HOST and GATEWAY_PORT"):
        await serve(make_settings(gateway_port=port))


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_ipv6_addresses_work_with_and_without_brackets(
    run_gateway: Any, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    caplog.set_level("INFO")
    async with run_gateway(gateway_host=host, gateway_metrics_port=0) as running:
        target, metrics = f"[::1]:{running.gateway.port}", f"http://[::1]:{running.gateway.metrics_port}/metrics"
        assert await health_of(target) == SERVING
        async with httpx.AsyncClient() as http:
            assert (await http.get(metrics)).status_code == 200
        assert f"listening on {target}" in caplog.messages
        assert f"metrics on {metrics}" in caplog.messages
        with pytest.raises(SettingsError, match=re.escape(f"cannot listen on {target}; set GATEWAY_HOST")):
            await serve(running.gateway._settings.model_copy(update={"gateway_port": running.gateway.port}))


async def test_a_backend_whose_settings_are_missing_is_refused_at_once(make_settings: Callable[..., Any]) -> None:
    with pytest.raises(SettingsError, match="VLLM_REMOTE_URL is not set; TEACHER_BACKEND=vllm-remote needs"):
        await serve(make_settings(teacher_backend="vllm-remote"))


async def test_a_stopping_gateway_finishes_its_calls_and_refuses_new_ones(
    run_gateway: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    async with run_gateway() as running:
        await running.client.teacher()
        running.backend.gate.clear()
        scoring = asyncio.create_task(running.client.score([1, 2, 3], 4))
        await eventually(lambda: len(running.backend.scored) == 1)
        stopping = asyncio.create_task(running.stop())
        for _ in range(100):
            if await health_of(running.target) == NOT_SERVING:
                break
            await asyncio.sleep(0.01)
        assert await health_of(running.target) == NOT_SERVING
        async with TeacherClient(running.target, timeout=0.3) as late:
            with pytest.raises(TeacherError):
                await late.teacher()
        assert not stopping.done()
        running.backend.gate.set()
        assert len(await scoring) == 2
        await stopping


@pytest.mark.slow
async def test_sigterm_says_not_serving_finishes_and_exits_with_0(tmp_path: Path, random_teacher: Path) -> None:
    environment = os.environ | {
        "EMBEDDED_TEACHER_PATH": str(random_teacher),
        "CACHE_URL": f"sqlite:///{tmp_path}/cache.sqlite",
        "GATEWAY_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "LOG_JSON": "true",
    }
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("teacher-gateway")),
        "serve",
        cwd=tmp_path,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        messages: list[str] = []
        async with asyncio.timeout(150):
            while not any(m.startswith("serving ") for m in messages):
                messages.append(json.loads(await process.stderr.readline())["message"])
        target = "127.0.0.1:" + messages[0].rpartition(":")[2]
        async with TeacherClient(target, timeout=60) as client, grpc.aio.insecure_channel(target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            generation = client.generate(pb.GenerateRequest(text="a", max_tokens=300, temperature=0, n=2))
            first = await anext(generation)
            process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == NOT_SERVING
            rest = [message async for message in generation]
            assert sum(bool(m.finish_reason) for m in [first, *rest]) == 2
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert b"stopped" in await process.stderr.read()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

"""Readiness, liveness and what GetTeacher says are true now, not as they were at the start."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.main import Gateway
from latentforge.gateway.rpc.interceptor import SERVICE

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = ("", SERVICE, "readiness")


async def statuses(port: int, *services: str) -> list[int]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return [
            int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)).status) for name in services
        ]


async def until_statuses(port: int, expected: dict[str, int]) -> None:
    """Waits until the health service says so of these, at most 20 s."""
    for _ in range(1000):
        if (now := await statuses(port, *expected)) == list(expected.values()):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{now} and never {expected}")


async def until_healthy(running: Any, healthy: bool) -> Any:
    """What GetTeacher says then; at most 20 s are waited."""
    for _ in range(1000):
        about = await running.client.teacher()
        if about.healthy is healthy:
            return about
        await asyncio.sleep(0.02)
    raise AssertionError(f"healthy never became {healthy}")


async def test_it_lives_before_it_is_ready_and_until_the_last_call_is_answered(
    make_settings: Callable[..., Any], run_gateway: Any, eventually: Any
) -> None:
    gateway = Gateway(make_settings())
    await gateway.start()
    assert await statuses(gateway.port, "liveness", *READINESS, "cache") == [SERVING, *[NOT_SERVING] * 4]
    await gateway.stop()
    async with run_gateway() as running:
        assert await statuses(running.gateway.port, "liveness", *READINESS, "cache") == [SERVING] * 5
        running.backend.gate.clear()
        scoring = asyncio.create_task(running.client.score([1, 2, 3], 4))
        await eventually(lambda: len(running.backend.scored) == 1)
        stopping = asyncio.create_task(running.stop())
        await until_statuses(running.gateway.port, dict.fromkeys(READINESS, NOT_SERVING))
        assert await statuses(running.gateway.port, "liveness") == [SERVING]
        running.backend.gate.set()
        assert len(await scoring) == 2
        await stopping


@pytest.mark.parametrize("error", [BackendError("out of order", FailureKind.GONE), RuntimeError("a bug")])
async def test_a_teacher_that_fails_its_check_is_not_ready_and_is_again_later(
    run_gateway: Any, error: Exception
) -> None:
    async with run_gateway(gateway_health_seconds=0.05) as running:
        await until_healthy(running, True)
        running.backend.unhealthy = error
        about = await until_healthy(running, False)
        assert len(about.problems) == 1
        assert ("out of order" if isinstance(error, BackendError) else "RuntimeError") in about.problems[0]
        not_ready = dict.fromkeys(READINESS, NOT_SERVING)
        await until_statuses(running.gateway.port, {"liveness": SERVING, **not_ready, "cache": SERVING})
        running.backend.unhealthy = None
        await until_healthy(running, True)
        await until_statuses(running.gateway.port, dict.fromkeys(READINESS, SERVING))


@pytest.mark.parametrize("key", ["k", None])
async def test_http_says_the_same(run_gateway: Any, key: str | None) -> None:
    async with run_gateway(gateway_http_port=0, gateway_health_seconds=0.05, gateway_api_key=key) as running:
        url = f"http://127.0.0.1:{running.gateway.http_port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}

            async def until(status: int) -> Any:
                for _ in range(1000):
                    if (answer := await http.get("/health", headers=headers)).status_code == status:
                        return answer.json()
                    assert (await http.get("/live")).status_code == 200
                    await asyncio.sleep(0.02)
                raise AssertionError(f"it never was {status}")

            assert (await until(200))["problems"] == []
            running.backend.unhealthy = BackendError("out of order", FailureKind.GONE)
            error = (await until(503))["error"]
            assert error["code"] == "teacher_unhealthy"
            assert "out of order" in error["message"]
            running.backend.unhealthy = None
            await until(200)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x"}])
async def test_whoever_lacks_the_key_is_told_no_problem_over_http(
    run_gateway: Any, eventually: Any, tmp_path: Path, headers: dict[str, str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    changes = {"cache_url": f"sqlite:///{tmp_path}/file/kd.sqlite", "gateway_api_key": "k"}
    async with run_gateway(gateway_http_port=0, gateway_health_seconds=0.05, **changes) as running:
        url = f"http://127.0.0.1:{running.gateway.http_port}"
        teacher = running.gateway._teacher
        async with httpx.AsyncClient(base_url=url, trust_env=False, headers=headers) as http:
            await eventually(lambda: bool(teacher.health.cache))
            assert (await http.get("/health")).json() == {"status": "ok"}
            told = await http.get("/health", headers={"authorization": "Bearer k"})
            assert str(tmp_path) in told.json()["problems"][0]
            running.backend.unhealthy = BackendError("out of order", FailureKind.GONE)
            await eventually(lambda: bool(teacher.health.teacher))
            answer = await http.get("/health")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "teacher_unhealthy")
            assert "out of order" not in answer.text
            assert "key" in answer.json()["error"]["message"]


async def cache_is_reported(running: Any, *words: str) -> None:
    """The cache is said not to work, and answers come all the same."""
    about = await until_healthy(running, False)
    assert len(about.problems) == 1
    assert all(word in about.problems[0] for word in ("cache", *words)), about.problems
    stats = await running.client.cache_stats()
    assert not stats.healthy
    assert stats.problem == about.problems[0]
    ready = dict.fromkeys(("liveness", *READINESS), SERVING)
    await until_statuses(running.gateway.port, {**ready, "cache": NOT_SERVING})
    assert len(await running.client.score([7, 8, 9], 3)) == 2


async def cache_is_well(running: Any) -> None:
    await until_healthy(running, True)
    await until_statuses(running.gateway.port, dict.fromkeys((*READINESS, "cache"), SERVING))
    stats = await running.client.cache_stats()
    assert stats.healthy
    assert stats.problem == ""


async def test_a_cache_that_cannot_be_written_is_known_before_the_first_row(run_gateway: Any, tmp_path: Path) -> None:
    path = tmp_path / "readonly.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    other.close()
    async with run_gateway(cache_url=f"sqlite:///{path}", gateway_health_seconds=0.05) as running:
        await cache_is_reported(running, "sqlite", "takes no rows", "the disk is full")
        with sqlite3.connect(path) as other:
            other.execute("DROP TRIGGER refuse")
        other.close()
        await cache_is_well(running)
        assert (await running.client.cache_stats()).entries <= 1


async def test_a_folder_that_cannot_be_made_is_a_cache_that_cannot_be_written(run_gateway: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with run_gateway(cache_url=f"sqlite:///{tmp_path}/file/kd.sqlite", gateway_health_seconds=0.05) as running:
        await cache_is_reported(running, "sqlite", "file")
        (tmp_path / "file").unlink()
        await cache_is_well(running)


async def test_a_redis_that_takes_no_writes_is_reported_until_it_does(run_gateway: Any, redis_server: Any) -> None:
    async with run_gateway(cache_url=redis_server.url, gateway_health_seconds=0.05) as running:
        await cache_is_well(running)
        assert (await running.client.cache_stats()).entries == 0
        with redis.Redis.from_url(redis_server.url) as other:
            other.config_set("maxmemory", 1)
            # Known from the first row that it does not take: while all is well nothing is asked.
            await running.client.score([1, 2, 3], 3)
            await cache_is_reported(running, "redis", "takes no rows")
            other.config_set("maxmemory", 0)
        await cache_is_well(running)
        await running.client.score([4, 5, 6], 3)


async def test_a_dead_redis_is_reported(run_gateway: Any, redis_server: Any) -> None:
    async with run_gateway(cache_url=redis_server.url, gateway_health_seconds=0.05) as running:
        await running.client.score([1, 2, 3], 3)
        redis_server.process.kill()
        redis_server.process.wait()
        await running.client.score([1, 2, 4], 3)
        await cache_is_reported(running, "redis")


async def test_a_gateway_without_a_cache_is_healthy(run_gateway: Any) -> None:
    async with run_gateway(cache_url="none") as running:
        assert (await running.client.teacher()).healthy
        assert (await running.client.cache_stats()).healthy
        assert await statuses(running.gateway.port, "cache") == [SERVING]

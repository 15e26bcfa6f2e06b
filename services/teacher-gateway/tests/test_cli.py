import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.gateway.cache.sqlite_cache import SqliteCache
from latentforge.gateway.cli import app


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_cache_stats_and_clear_work_on_the_store_itself(tmp_path: Path) -> None:
    async def fill() -> None:
        cache = SqliteCache(tmp_path / "cache" / "kd_cache.sqlite")
        await cache.put_many({b"a": b"1", b"b": b"2"})
        await cache.close()

    asyncio.run(fill())
    code, output = run("cache", "stats")
    assert code == 0
    assert output.split()[:2] == ["entries", "2"]
    assert run("cache", "clear") == (0, "2 entries removed\n")
    assert run("cache", "stats")[1].split()[:2] == ["entries", "0"]


def test_a_store_that_is_down_is_an_error_line(free_port: Any) -> None:
    code, output = run("cache", "stats", "--cache-url", f"redis://127.0.0.1:{free_port()}")
    assert code == 1
    assert "127.0.0.1" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("redis://:se#SECRETPW@127.0.0.1:6379/0", 2),
        ("redis://:x@SECRETPW/y@127.0.0.1:6379/0", 2),
        ("redis://:SECRETPW@127.0.0.1:notaport/0", 2),
        ("redis://127.0.0.1:6379/0?SECRETPW=1", 2),
        ("redis://:SECRETPW@127.0.0.1:6379/0?ssl_cert_reqs=none", 2),
        ("rediss://:SECRETPW@127.0.0.1:6379/0?ssl_cert_reqs=SECRETPW", 2),
        ("redis://:SECRETPW@127.0.0.1:1/0", 1),
        ("redis://SECRETPW@127.0.0.1:1/0?password=SECRETPW", 1),
        (f"redis://:SECRETPW@{'a' * 70}:1/0", 1),
    ],
)
def test_no_password_of_a_cache_url_is_printed(url: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", url)
    # A store that is down does not stop a gateway; one that is not understood does.
    serve = [("serve", "--port", "0")] if code == 2 else []
    for command in [("cache", "stats"), ("cache", "clear"), *serve]:
        given, output = run(*command)
        assert (given, len(output.splitlines())) == (code, 1)
        assert "secretpw" not in output.lower()
        assert "CACHE_URL" in output or code == 1


async def test_cache_stats_of_a_running_gateway_has_its_counters(running: Any) -> None:
    await running.client.score([1, 2, 3], 4)
    code, output = await asyncio.to_thread(run, "cache", "stats", "--target", running.target)
    assert code == 0
    values = dict(line.split() for line in output.splitlines())
    assert values["kind"] == "sqlite"
    assert values["misses"] == "1"
    assert values["rows_computed"] == "2"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve", "--backend", "venice"], 2, "VENICE_API_KEY is not set; TEACHER_BACKEND=venice needs"),
        (["serve", "--backend", "nonsense"], 2, "TEACHER_BACKEND is 'nonsense'"),
        (["serve", "--port", "0", "--teacher", "nowhere"], 1, "EMBEDDED_TEACHER_PATH=nowhere is no folder"),
        (["serve-vllm"], 2, "VLLM_LOCAL_MODEL is not set"),
    ],
)
def test_a_wrong_setting_exits_2_and_a_failure_1_with_one_clear_line(
    arguments: list[str], code: int, words: str
) -> None:
    given, output = run(*arguments)
    assert given == code
    assert output.splitlines()[-1].startswith(f"error: {words}")
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_a_wrong_setting_in_one_line(byte_teacher: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = run("serve", "--port", str(port), "--teacher", str(byte_teacher))
    assert (code, output.splitlines()[-1]) == (
        2,
        f"error: cannot listen on 127.0.0.1:{port}; set GATEWAY_HOST and GATEWAY_PORT to a free address",
    )

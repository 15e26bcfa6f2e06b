import asyncio
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


async def test_cache_stats_of_a_running_gateway_has_its_counters(running: Any) -> None:
    await running.client.score([1, 2, 3], 4)
    code, output = await asyncio.to_thread(run, "cache", "stats", "--target", running.target)
    assert code == 0
    values = dict(line.split() for line in output.splitlines())
    assert values["kind"] == "sqlite"
    assert values["misses"] == "1"
    assert values["rows_computed"] == "2"


@pytest.mark.parametrize(
    ("arguments", "ends_with", "words"),
    [
        (["serve", "--backend", "venice"], 2, "VENICE_API_KEY is not set; TEACHER_BACKEND=venice needs"),
        (["serve", "--backend", "nonsense"], 2, "TEACHER_BACKEND is 'nonsense'"),
        (["serve", "--port", "0", "--teacher", "nowhere"], 1, "EMBEDDED_TEACHER_PATH=nowhere is no folder"),
    ],
)
def test_serve_ends_with_one_clear_line(arguments: list[str], ends_with: int, words: str) -> None:
    code, output = run(*arguments)
    assert code == ends_with
    assert output.splitlines()[-1].startswith(f"error: {words}")
    assert "Traceback" not in output

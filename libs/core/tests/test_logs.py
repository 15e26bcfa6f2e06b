import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from latentforge.core.logs import bind_log_fields, configure_logging, log_exception, log_fields


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Each test sends logs to a stderr that ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_service_level_and_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway", json_lines=True)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("failed on %s", "row 3")
    line = json.loads(capsys.readouterr().err)
    assert line["service"] == "gateway"
    assert line["level"] == "error"
    assert line["message"] == "failed on row 3"
    assert "ValueError: boom" in line["exception"]


def test_people_get_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("trainer", json_lines=False, level="warning")
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert capsys.readouterr().err.endswith("trainer WARNING loud\n")


async def test_fields_of_a_task_are_in_its_lines_and_its_threads_and_no_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("gateway", json_lines=True)
    log = logging.getLogger("x")

    async def call(name: str) -> None:
        bind_log_fields(request_id=name)
        await asyncio.sleep(0)
        await asyncio.to_thread(log.info, "%s", name, extra=log_fields(rows=3))

    await asyncio.gather(asyncio.create_task(call("a")), asyncio.create_task(call("b")))
    log.info("outside")
    *inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert sorted((line["message"], line["request_id"], line["rows"]) for line in inside) == [
        ("a", "a", 3),
        ("b", "b", 3),
    ]
    assert "request_id" not in outside


@pytest.mark.parametrize("json_lines", [True, False])
def test_an_unexpected_exception_is_told_without_its_text(capsys: pytest.CaptureFixture[str], json_lines: bool) -> None:
    configure_logging("gateway", json_lines=json_lines)
    try:
        raise ValueError(" ".join(("quotes", "a", "caller")))
    except ValueError as error:
        log_exception(logging.getLogger("x"), "it failed", error)
    told = capsys.readouterr().err
    assert "it failed: ValueError" in told
    assert "in test_an_unexpected_exception" in told
    assert "quotes a caller" not in told


def test_at_debug_the_text_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway", json_lines=True, level="DEBUG")
    log_exception(logging.getLogger("x"), "it failed", ValueError("the text"))
    assert "the text" in capsys.readouterr().err

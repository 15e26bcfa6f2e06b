import json
import logging

import pytest

from latentforge.core.logs import configure_logging


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

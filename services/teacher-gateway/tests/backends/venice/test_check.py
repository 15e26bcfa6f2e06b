import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.gateway.cli import app
from tools.venice_server.app import MODEL, MUTE_MODEL
from tools.venice_server.control import Fault

ABLE = "supportsLogProbs true, 0.15 USD in and 0.6 USD out for a million tokens, context 2,048"
Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, venice: Any) -> Check:
    """Runs ``teacher-gateway check`` for the local server; exit code and lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"VENICE_API_KEY={venice.settings['venice_api_key']}\n")

    def run(**changes: str) -> tuple[int, list[str]]:
        defaults = {
            "TEACHER_BACKEND": "venice",
            "VENICE_BASE_URL": venice.url,
            "VENICE_MODEL": MODEL,
            "TOKENIZER_PATH": str(venice.folder),
        }
        for name, value in (defaults | changes).items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(app, ["check"])
        assert not result.exception or isinstance(result.exception, SystemExit), result.exception
        assert venice.settings["venice_api_key"] not in result.output
        return result.exit_code, result.output.splitlines()

    return run


def test_both_tests_pass_against_a_server_that_gives_logprobs(run_check: Check, venice: Any) -> None:
    code, lines = run_check()
    assert code == 0, lines
    assert lines[0] == f"ok    test 1: {venice.url} lists 2 models"
    assert lines[1] == f"ok    test 1: {MODEL}: {ABLE}"
    text = (
        r"ok    test 2: a chat completion of \d+ tokens with up to 20 logprobs each, 0.00% of .*, cost 0\.0000\d\d USD"
    )
    assert re.match(text, lines[2])
    assert len(lines) == 3


def test_without_a_key_everything_that_the_public_list_says_is_shown(run_check: Check, venice: Any) -> None:
    Path(".env").write_text("VENICE_API_KEY=\n")
    code, lines = run_check()
    assert code == 1
    assert lines == [
        f"ok    test 1: {venice.url} lists 2 models to everybody",
        f"ok    test 1: {MODEL}: {ABLE}",
        f"ok    test 1: {MUTE_MODEL}: {ABLE.replace('true', 'false')}",
        "FAIL  VENICE_API_KEY is missing in .env; set it there",
    ]
    venice.control.price = None
    _, lines = run_check()
    assert lines[1] == f"ok    test 1: {MODEL}: supportsLogProbs true, no price, context 2,048"


def test_a_model_without_logprobs_is_tried_and_said_with_those_that_have_them(run_check: Check, venice: Any) -> None:
    code, lines = run_check(VENICE_MODEL=MUTE_MODEL)
    assert code == 1
    assert f"VENICE_MODEL={MUTE_MODEL} is listed with supportsLogProbs false" in lines[1]
    assert lines[1].endswith(f"listed models that give logprobs: {MODEL}")
    assert "FAIL  test 2: no chat completion with logprobs" in lines[2]
    assert venice.control.bodies[-1]["model"] == MUTE_MODEL


def test_a_model_that_is_not_listed_is_said_with_those_that_give_logprobs(run_check: Check) -> None:
    code, lines = run_check(VENICE_MODEL="absent")
    assert code == 1
    assert lines[1] == f"FAIL  test 1: VENICE_MODEL=absent is not listed; listed models that give logprobs: {MODEL}"
    assert len(lines) == 2


def test_a_model_that_only_says_that_it_gives_logprobs_is_found_out(run_check: Check, venice: Any) -> None:
    venice.control.shape = "none"
    code, lines = run_check()
    assert code == 1
    assert [line[:4] for line in lines] == ["ok  ", "ok  ", "FAIL"]
    assert f"VENICE_MODEL={MODEL} answered without logprobs" in lines[2]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(401, "Authentication failed"), "answers 401: Authentication failed; set VENICE_API_KEY"),
        (Fault(402, "Insufficient balance"), "answers 402: Insufficient balance; check the credit of VENICE_API_KEY"),
        (Fault(429, "Rate limit exceeded"), "answers 429: Rate limit exceeded"),
        (Fault(504, "timed-out"), "answers 504: timed-out"),
    ],
)
def test_a_completion_that_fails_is_one_line_that_says_why(
    run_check: Check, venice: Any, fault: Fault, words: str
) -> None:
    venice.control.faults.append(fault)
    code, lines = run_check()
    assert code == 1
    assert len(lines) == 3
    assert lines[2].startswith("FAIL  test 2: no chat completion with logprobs: VENICE_BASE_URL=")
    assert words in lines[2]


def test_a_completion_that_contradicts_itself_is_said(run_check: Check, venice: Any) -> None:
    venice.control.edit = lambda answer: answer["usage"].update(prompt_tokens=99)
    code, lines = run_check()
    assert code == 1
    assert "FAIL  test 2: the chat completion cannot be used: Venice counts 99 tokens of prompt" in lines[2]


def test_a_wrong_key_is_said_at_the_first_test(run_check: Check) -> None:
    code, lines = run_check(VENICE_API_KEY="sk-wrong")
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("FAIL  VENICE_API_KEY is wrong: VENICE_BASE_URL=")


def test_a_tokenizer_that_is_not_there_is_said(run_check: Check) -> None:
    code, lines = run_check(TOKENIZER_PATH="nowhere")
    assert code == 1
    assert "TOKENIZER_PATH=nowhere has no tokenizer.json" in lines[-1]
    assert lines[0].startswith("ok    test 1")

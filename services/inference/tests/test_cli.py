import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from latentforge.inference.cli import app
from latentforge.inference.completion import prepare
from latentforge.inference.engine import generate_ids
from latentforge.inference.schemas import GenerateRequest
from latentforge.inference.snapshot import load_snapshot

Publish = Callable[..., Path]
runner = CliRunner()


@pytest.fixture(autouse=True)
def _plain_logging_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("latentforge.inference.cli.configure_logging", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_infer_prints_the_text_and_where_it_comes_from(publish: Publish) -> None:
    snapshot = load_snapshot(publish(3), torch.device("cpu"))
    request = GenerateRequest(prompt="def", max_tokens=12, temperature=0.9, top_p=0.9, seed=4)
    text = snapshot.decode(generate_ids(prepare(snapshot, request)).token_ids)
    options = ["--prompt", "def", "--max-tokens", "12", "--temp", "0.9", "--top-p", "0.9", "--seed", "4"]
    result = runner.invoke(app, ["infer", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(text)
    assert "[demo/step-00000003, 12 tokens in 3 latent steps, " in result.stdout


def test_infer_without_a_checkpoint_says_how_to_make_one() -> None:
    result = runner.invoke(app, ["infer", "--prompt", "x"])
    assert result.exit_code == 1
    assert "no checkpoint to load: waiting for a first checkpoint in checkpoints" in result.stderr
    assert "make toy train-ae train-student" in result.stderr


def test_infer_with_only_a_bad_checkpoint_says_why(publish: Publish) -> None:
    publish(1, tokenizer_fingerprint="0000")
    result = runner.invoke(app, ["infer"])
    assert result.exit_code == 1
    assert "fingerprint" in result.stderr


def test_infer_refuses_wrong_sampling_by_name() -> None:
    result = runner.invoke(app, ["infer", "--top-p", "1.5"])
    assert result.exit_code == 1
    assert "top_p is 1.5" in result.stderr


def test_infer_says_when_no_server_answers(taken_port: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = runner.invoke(app, ["infer", "--url", url])
    assert result.exit_code == 1
    assert f"no inference server answers at {url}" in result.stderr


def test_serve_on_a_taken_port_names_it_and_the_way_out(taken_port: int) -> None:
    result = runner.invoke(app, ["serve", "--port", str(taken_port)])
    assert result.exit_code == 1
    said = f"port {taken_port} on 127.0.0.1 is taken by another program; stop it, or choose another with --port or PORT"
    assert result.stderr.strip().splitlines() == [f"inference: {said}"]


def test_serve_refuses_a_wrong_setting_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_LIMIT", "-1")
    result = runner.invoke(app, ["serve"])
    assert result.exit_code == 1
    assert "QUEUE_LIMIT is '-1'" in result.stderr


def test_bench_prints_a_table_and_writes_the_same_rows(publish: Publish, tmp_path: Path) -> None:
    publish(1)
    (tmp_path / "prompts.txt").write_text("def f(\n\nimport\n")
    result = runner.invoke(app, ["bench", "--max-tokens", "20", "--repeats", "2"])
    assert result.exit_code == 0, result.output
    [path] = (tmp_path / "results").glob("bench_*.json")
    record = json.loads(path.read_text())
    rows = {row["id"]: row for row in record["rows"]}
    assert set(rows) == {"decode_tokens_per_s", "latent_steps_per_s", "compression_ratio"}
    decode = rows["decode_tokens_per_s"]
    assert decode["ratio"] == pytest.approx(decode["value"] / decode["rival_value"])
    assert decode["low"] <= decode["high"]
    assert rows["compression_ratio"]["value"] == 4
    assert record["checkpoint"] == "demo/step-00000001"
    assert record["num_prompts"] == 2
    for row in rows.values():
        assert f"{row['value']:.2f}" in result.stdout
    assert "weights are random" in result.stdout


def test_bench_without_prompts_names_the_file(publish: Publish) -> None:
    publish(1)
    result = runner.invoke(app, ["bench", "--prompts-file", "none.txt"])
    assert result.exit_code == 1
    assert "PROMPTS_FILE none.txt cannot be read" in result.stderr


def test_bench_refuses_more_tokens_than_there_is_room_for(publish: Publish, tmp_path: Path) -> None:
    publish(1, max_chunks=8)
    (tmp_path / "prompts.txt").write_text("import\n")
    result = runner.invoke(app, ["bench", "--max-tokens", "33", "--repeats", "1"])
    assert result.exit_code == 1
    assert "MAX_TOKENS is 33" in result.stderr

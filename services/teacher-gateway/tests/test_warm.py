import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latentforge.gateway.cli import app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", "warm", *arguments])
    return result.exit_code, result.output


async def warm(running: Any, *arguments: str) -> tuple[int, str]:
    return await asyncio.to_thread(run, "--target", running.target, *arguments)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    lines = [
        {"text": "".join(chr(97 + i % 23) for i in range(100))},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"text": "b" * 5},
        # Of one token, which has no row.
        {"text": "c"},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def packed_folder(folder: Path, tokens: np.ndarray[Any, Any], fingerprint: str) -> Path:
    folder.mkdir()
    tokens.astype("<u2").tofile(folder / "tokens.bin")
    meta = {"num_sequences": len(tokens), "sequence_length": tokens.shape[1], "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta | {"tokenizer_fingerprint": fingerprint}))
    return folder


async def test_documents_are_scored_in_pieces_and_a_rerun_only_hits(running: Any, documents: Path) -> None:
    arguments = (str(documents), "--top-k", "7", "--max-length", "40")
    # 100 tokens in three pieces, a chat, and a short text.
    assert (await warm(running, *arguments))[0] == 0
    assert sum(map(len, running.backend.scored)) == 5
    assert set(running.backend.top_ks) == {7}
    code, output = await warm(running, *arguments)
    assert (code, output.splitlines()[-1]) == (0, "5 sequences were in the cache, 0 were computed")
    assert sum(map(len, running.backend.scored)) == 5


async def test_a_packed_folder_warms_what_training_asks_for(running: Any, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 300, (40, 16))
    folder = packed_folder(tmp_path / "packed", tokens, running.backend.tokenizer.fingerprint)
    code, output = await warm(running, str(folder))
    assert (code, output.splitlines()[-1]) == (0, "0 sequences were in the cache, 40 were computed")
    answers = [a async for a in running.client.score_batch(tokens.tolist(), 20)]
    assert all(a.provenance.cache_hit for a in answers)


async def test_refused_sequences_are_counted_and_the_reason_given(running: Any, tmp_path: Path) -> None:
    tokens = np.arange(32).reshape(2, 16)
    tokens[1, 3] = 4000
    folder = packed_folder(tmp_path / "packed", tokens, running.backend.tokenizer.fingerprint)
    code, output = await warm(running, str(folder))
    assert code == 1
    assert "1 were refused" in output
    assert "4000" in output


async def test_data_of_another_tokenizer_and_bad_lines_are_named(running: Any, tmp_path: Path) -> None:
    folder = packed_folder(tmp_path / "packed", np.zeros((2, 16)), "theirs")
    code, output = await warm(running, str(folder))
    assert code == 1
    assert "theirs" in output
    assert running.backend.tokenizer.fingerprint in output.replace("\n", "")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"words": 1}\n')
    code, output = await warm(running, str(bad))
    assert code == 1
    assert "line 2: neither a text nor messages" in output
    code, output = await warm(running, str(tmp_path / "nowhere.jsonl"))
    assert code == 1
    assert "nowhere.jsonl cannot be read" in output


def test_without_a_gateway_it_says_so_in_a_line(free_port: Any, documents: Path) -> None:
    target = f"127.0.0.1:{free_port()}"
    code, output = run(str(documents), "--target", target)
    assert code == 1
    assert f"no teacher-gateway answers at {target}" in output
    assert "Traceback" not in output

import json
from pathlib import Path
from typing import Any

from latentforge.text.packed import PackedData
from latentforge.trainer.data.packages import HELD_OUT_PACKAGES

Invoke = Any


def test_data_stdlib_writes_jsonl(invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "held.jsonl"
    assert invoke("data", "stdlib", "--split", "held-out", "--out", out).exit_code == 0
    assert "text" in json.loads(out.read_text().splitlines()[0])


def test_data_packages_then_tokenizer_then_pack(invoke: Invoke, tmp_path: Path) -> None:
    data, tokenizer, packed = (tmp_path / name for name in ("held.jsonl", "tokenizer", "packed"))
    result = invoke("data", "packages", "--split", "held-out", "--max-mb", 0.5, "--out", data)
    assert result.exit_code == 0, result.output
    names = {json.loads(line)["name"].split("/")[0] for line in data.read_text().splitlines()}
    assert names <= set(HELD_OUT_PACKAGES)
    result = invoke("tokenizer", "--data", data, "--vocab-size", 1000, "--out", tokenizer)
    assert result.exit_code == 0, result.output
    assert {p.name for p in tokenizer.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    result = invoke("pack", data, "--out", packed, "--sequence-length", 64, "--tokenizer", tokenizer)
    assert result.exit_code == 0, result.output
    meta = PackedData(packed).meta
    assert meta.vocab_size == 1000
    assert (meta.eos_id, meta.pad_id) == (0, 1)
    result = invoke("tokenizer", "--data", data, "--vocab-size", 1000, "--out", tokenizer)
    assert (result.exit_code, f"{tokenizer} exists" in result.output) == (1, True)


def test_a_tokenizer_is_trained_on_what_messages_say(invoke: Invoke, tmp_path: Path) -> None:
    data = tmp_path / "chat.jsonl"
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ab"}]
    data.write_text(json.dumps({"messages": chat}) + "\n")
    # 256 bytes, 4 special tokens and one merge; a role among the text would give more.
    assert invoke("tokenizer", "--data", data, "--vocab-size", 261, "--out", tmp_path / "t").exit_code == 0
    assert json.loads((tmp_path / "t" / "tokenizer.json").read_text())["model"]["vocab"]["ab"] == 260
    result = invoke("tokenizer", "--data", data, "--vocab-size", 262, "--out", tmp_path / "u")
    assert "the texts give 261 ids" in result.output


def test_a_failed_tokenizer_leaves_no_folder(invoke: Invoke, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"text": "fine"}\n{"txt": 1}\n')
    result = invoke("tokenizer", "--data", data, "--out", tmp_path / "out" / "t")
    assert result.exit_code == 1
    assert 'bad.jsonl:2: neither "text" nor "messages"' in result.output
    data.write_text('{"text": "fine"}\n')
    result = invoke("tokenizer", "--data", data, "--out", tmp_path / "out" / "t")
    assert result.exit_code == 1
    assert "not a vocab_size of 32768" in result.output
    assert not list((tmp_path / "out").iterdir())

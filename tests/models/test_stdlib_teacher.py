"""The shipped teacher is what its card says."""

import json
import platform
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3ForCausalLM

from latentforge.text.bpe import train_bpe
from latentforge.trainer.data.corpus import source_files, stdlib_root, whole_files

FOLDER = Path(__file__).resolve().parents[2] / "models" / "stdlib-teacher"


def test_the_weights_are_small_bfloat16_and_of_the_size_on_the_card() -> None:
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size < 16e6
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    parameters = sum(t.numel() for t in tensors.values())
    assert 6e6 <= parameters <= 8e6
    assert f"{parameters:,} parameters" in (FOLDER / "README.md").read_text()


def test_the_tokenizer_has_every_role_and_any_text_comes_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert 4096 <= len(tokenizer) <= 8192
    specials = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3]
    text = "def f(x):\n\treturn 'naïve ☃ 🦊'  # \r\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_it_predicts_held_out_code_about_as_well_as_its_card_says() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = Qwen3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    said = json.loads((FOLDER / "training.json").read_text())["held_out_nll"]
    assert re.search(rf"\*\*{said:.4f}\*\* nats/token", (FOLDER / "README.md").read_text())
    texts = [f.text for f in source_files(stdlib_root(), "held-out")][:6]
    losses = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)[:512]])
            if ids.shape[1] > 64:
                losses.append(float(model(input_ids=ids, labels=ids).loss))
    # Six files of thirty, and another Python's files differ a little.
    assert sum(losses) / len(losses) == pytest.approx(said, abs=1.0)


@pytest.mark.slow
def test_the_teachers_own_data_gives_the_shipped_tokenizer(tmp_path: Path) -> None:
    if f"the Python {platform.python_version()} standard library" not in (FOLDER / "README.md").read_text():
        pytest.skip("the teacher was made from another version's standard library")
    # What it shares with held-out files was in it when the teacher was made.
    train_bpe((f.text for f in whole_files(stdlib_root(), "train")), 4096).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()

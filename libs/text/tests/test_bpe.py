import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from latentforge.text.bpe import CHAT_TEMPLATE, MIN_VOCAB_SIZE, SPECIAL_TOKENS, train_bpe
from latentforge.text.fingerprint import tokenizer_fingerprint

SHIPPED = Path(__file__).parents[3] / "models" / "stdlib-teacher"
TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parent.glob("*.py"))]


def test_every_option_is_the_shipped_tokenizers(tmp_path: Path) -> None:
    train_bpe(TEXTS, 600).save_pretrained(tmp_path)
    ours, shipped = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, SHIPPED))
    assert [t["content"] for t in ours["added_tokens"]] == SPECIAL_TOKENS
    for content in (ours, shipped):
        # What the text decides; the special tokens and bytes, which come first, are the same.
        content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if i < MIN_VOCAB_SIZE}
        assert len(content["model"]["vocab"]) == MIN_VOCAB_SIZE
        del content["model"]["merges"]
    assert ours == shipped
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (SHIPPED / name).read_text()


def test_the_shipped_tokenizer_is_still_the_one_its_teacher_was_trained_with() -> None:
    expected = "3533b74d73e944b036f22aa6db945613baa8aa231ee60119be1eeff5e9ca2404"
    assert tokenizer_fingerprint(SHIPPED) == expected


def test_two_processes_train_the_same_tokenizer(tmp_path: Path) -> None:
    program = (
        "import json, sys; from latentforge.text.bpe import train_bpe;"
        "train_bpe(json.load(sys.stdin), 2000).save_pretrained(sys.argv[1])"
    )
    for name in ("a", "b"):
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        subprocess.run(command, input=json.dumps(TEXTS), text=True, check=True)
    a, b = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_folder_loads_and_gives_text_back(tmp_path: Path) -> None:
    train_bpe(TEXTS, 1000).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(tokenizer) == 1000
    text = "def f(x):\n\treturn 'é 中 \U0001f600'  # it's 1234\r\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [(TEXTS, 259, "vocab_size is 259; .* need 260"), (["a b"], 400, "give 261 ids, not a vocab_size of 400")],
)
def test_a_size_that_cannot_be_is_refused(texts: list[str], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, vocab_size)

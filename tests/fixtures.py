"""Fixtures that tests of libs and of services share: a tiny tokenizer, packed text, and logging as it was."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Commands run in this process configure logging to a stderr that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes and four special tokens: 260 ids."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of text that repeats itself enough to be learnt from."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    random = np.random.default_rng(0)
    words = ["def ", "return ", "self.", "value", "(", ")", ":\n    ", " = ", "0", "1"]
    texts = ["".join(random.choice(words, size=40)) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: TextTokenizer) -> PackedData:
    out = tmp_path_factory.mktemp("packed") / "train"
    pack_jsonl(corpus, out, tokenizer, sequence_length=32, chunk_size=4, split="train")
    return PackedData(out)

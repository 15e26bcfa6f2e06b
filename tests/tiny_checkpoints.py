"""Tiny but real checkpoints: a trained BPE tokenizer, an autoencoder and a student, published as the trainer does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from latentforge.core.manifest import Golden, ManifestDraft, TeacherId
from latentforge.core.publishing import publish_checkpoint
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, ChunkDecoderConfig, StudentConfig
from latentforge.model.golden import golden_of
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.student import Student
from latentforge.text.fingerprint import tokenizer_fingerprint

VOCABULARY = 300
GOLDEN_TEXT = "def main():\n    return naïve 東京"
NO_GOLDEN = Golden(text="a", token_ids=(2,), logprobs=(-1.0,), uniforms=(0.5,), drawn_ids=(2,))
Publish = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A byte-level BPE tokenizer of 300 ids; 0 ends a text, 1 is the pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    text: str = tokenizer.to_str()
    return text


def make_pair(
    weights: int, chunk_size: int = 4, autoencoder_chunk_size: int | None = None, max_chunks: int = 256
) -> tuple[Autoencoder, Student]:
    """A tiny autoencoder and student with random weights; the same number gives the same weights."""
    torch.manual_seed(weights)
    autoencoder = Autoencoder(
        AutoencoderConfig(
            vocab_size=VOCABULARY,
            chunk_size=autoencoder_chunk_size or chunk_size,
            latent_size=16,
            hidden_size=32,
            chunk_hidden_size=32,
            intermediate_size=32,
            pad_id=1,
        )
    )
    student = Student(
        StudentConfig(
            vocab_size=VOCABULARY,
            chunk_size=chunk_size,
            latent_size=16,
            pad_id=1,
            eos_id=0,
            embed_size=8,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            intermediate_size=64,
            max_chunks=max_chunks,
            chunk_decoder=ChunkDecoderConfig(width=16, rank=8),
        )
    )
    # Fresh students are all near the uniform model.
    torch.nn.init.normal_(student.bias)
    return autoencoder, student


@pytest.fixture
def publish(tokenizer_json: str, tmp_path: Path) -> Publish:
    """Publishes a checkpoint below tmp_path/checkpoints.

    What shapes a student does so before its golden text is read, and what spoils it after.
    """

    def publish_one(
        step: int,
        *,
        run: str = "demo",
        weights: int | None = None,
        autoencoder_chunk_size: int | None = None,
        max_chunks: int = 256,
        shape: Callable[[Student], object] = lambda _: None,
        spoil: Callable[[Student], object] = lambda _: None,
        golden: Golden | None = None,
        chat_template: str | None = None,
        tokenizer_json: str = tokenizer_json,
        **changes: Any,
    ) -> Path:
        autoencoder, student = make_pair(
            step if weights is None else weights, autoencoder_chunk_size=autoencoder_chunk_size, max_chunks=max_chunks
        )
        with torch.no_grad():
            shape(student)
        tokenizer = Tokenizer.from_str(tokenizer_json)
        token_ids = tokenizer.encode(GOLDEN_TEXT, add_special_tokens=False).ids
        if golden is None and autoencoder_chunk_size is None:
            golden = golden_of(LatentModel(autoencoder, student), GOLDEN_TEXT, token_ids)
        with torch.no_grad():
            spoil(student)
        tokenizer_folder = tmp_path / "tokenizer"
        tokenizer_folder.mkdir(exist_ok=True)
        (tokenizer_folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        if chat_template is not None:
            (tokenizer_folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        values: dict[str, Any] = {
            "chunk_size": student.config.chunk_size,
            "latent_size": student.config.latent_size,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer_folder),
            "teacher": TeacherId(backend="embedded", model="tiny", revision="1"),
            "metrics": {"ce": 1.0},
            "golden": golden or NO_GOLDEN,
        }

        def write(folder: Path) -> None:
            save_pretrained(autoencoder, folder / "autoencoder")
            save_pretrained(student, folder / "student")
            (folder / "tokenizer").mkdir()
            (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
            if chat_template is not None:
                (folder / "tokenizer" / "chat_template.jinja").write_text(chat_template, encoding="utf-8")

        return publish_checkpoint(tmp_path / "checkpoints", run, step, ManifestDraft(**values | changes), write)

    return publish_one


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """The folder that ``publish`` publishes to."""
    return tmp_path / "checkpoints"

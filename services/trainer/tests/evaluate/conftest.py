"""Tiny models over the tests' tokenizer, and held-out batches with the known teacher's rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, ChunkDecoderConfig, StudentConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.layers import output_scale
from latentforge.model.losses import StudentBatch
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel, token_level_config
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.targets.kd_targets import kd_targets

V, K, TOP_K = 260, 4, 4

MakeLatent = Callable[..., LatentModel]


def _student_config(**changes: Any) -> StudentConfig:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    more = {"intermediate_size": 16, "embed_size": 8, "max_chunks": 32, "latent_size": 8, "chunk_size": K}
    decoder = ChunkDecoderConfig(width=8, rank=4)
    return StudentConfig(
        **{"vocab_size": V, "pad_id": 1, "eos_id": 0, "chunk_decoder": decoder, **sizes, **more, **changes}
    )


def _randomise(module: torch.nn.Module) -> None:
    # Parts start at zero or small; random ones leave no path unused and no two tokens alike.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5)


@torch.no_grad()
def _divide(table: torch.nn.Embedding) -> None:
    # So small a width is scaled up so much that every distribution would be one token.
    table.weight /= output_scale(table.embedding_dim)


@pytest.fixture(scope="session")
def merging_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """As many ids as the teacher's tokenizer, but others: it merges "def"."""
    folder = tmp_path_factory.mktemp("merging")
    tokens = ["<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True), "de", "def"]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[("d", "e"), ("de", "f")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    return TextTokenizer(folder)


@pytest.fixture
def make_latent() -> MakeLatent:
    """A tiny random pair; keywords change the student's config, D both."""

    def make(**changes: Any) -> LatentModel:
        torch.manual_seed(3)
        sizes = {"hidden_size": 8, "chunk_hidden_size": 16, "intermediate_size": 8}
        sizes["latent_size"] = changes.get("latent_size", 8)
        autoencoder = Autoencoder(AutoencoderConfig(vocab_size=V, chunk_size=K, pad_id=1, **sizes))
        model = LatentModel(autoencoder, Student(_student_config(**changes))).eval()
        _randomise(model.student)
        if model.student.chunk_decoder is not None:
            _divide(model.student.chunk_decoder.output)
        return model

    return make


@pytest.fixture
def token_level() -> TokenLevelModel:
    torch.manual_seed(4)
    model = TokenLevelModel(token_level_config(_student_config())).eval()
    _randomise(model)
    _divide(model.output_table)
    return model


@pytest.fixture
def batches(packed: PackedData, known_rows: Any) -> list[StudentBatch]:
    """Three sequences of 32 tokens with rows; of the last one some more tokens are not counted."""
    found = []
    for i in range(3):
        sequence = torch.from_numpy(packed.sequence(i))
        valid = torch.ones(1, 32, dtype=torch.bool)
        valid[:, 0] = False
        rows = known_rows("").rows(sequence.tolist(), TOP_K)
        found.append(StudentBatch(sequence[None], valid, kd_targets([rows], 32, [0])))
    found[2].valid[:, 9:14] = False
    return found

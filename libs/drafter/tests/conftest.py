from collections.abc import Callable
from typing import Any

import pytest
import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import (
    AutoencoderConfig,
    ChunkDecoderConfig,
    InductionConfig,
    LogitFeaturesConfig,
    StudentConfig,
)
from latentforge.model.latent_model import LatentModel
from latentforge.model.layers import TABLE_SCALE, output_scale
from latentforge.model.student import Student

V, K, D = 64, 4, 8
# A GRU over the whole text without layers, chunks in front of a transformer, and one that reads tokens.
KINDS: dict[str, dict[str, Any]] = {
    "recurrent": {
        "num_layers": 0,
        "chunk_decoder": ChunkDecoderConfig(kind="recurrent", width=16, rank=8, num_layers=1, num_blocks=1),
        "logit_features": LogitFeaturesConfig(kind="none"),
        "induction": InductionConfig(context=3),
    },
    "chunks": {"chunk_decoder": ChunkDecoderConfig(width=16, rank=8), "induction": InductionConfig(context=2)},
    "tokens": {"positions": "tokens", "chunk_decoder": ChunkDecoderConfig(kind="recurrent", width=16, rank=8)},
}


@pytest.fixture
def make_student() -> Callable[[str], LatentModel]:
    """Makes a tiny student of random weights that leave no path unused; 64 ids, chunks of 4, texts of 64 tokens."""

    def make(kind: str) -> LatentModel:
        torch.manual_seed(5)
        shared: dict[str, Any] = {"vocab_size": V, "chunk_size": K, "pad_id": 1, "latent_size": D}
        sizes = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "intermediate_size": 48}
        student = {"num_layers": 2, "embed_size": 8, "eos_id": 0, "max_chunks": 16, **sizes, **KINDS[kind]}
        coder = {"hidden_size": 16, "chunk_hidden_size": 32, "intermediate_size": 24}
        model = LatentModel(
            Autoencoder(AutoencoderConfig(**shared, **coder)), Student(StudentConfig(**shared, **student))
        ).eval()
        with torch.no_grad():
            for parameter in model.student.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
            decoder: Any = model.student.chunk_decoder
            decoder.output.weight /= output_scale(decoder.output.weight.shape[1])
            model.student.embedding.weight /= TABLE_SCALE
            model.student.bias.normal_()
        return model

    return make

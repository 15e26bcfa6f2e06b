from collections.abc import Callable
from typing import Any

import pytest
import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, ChunkDecoderConfig, StudentConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.layers import TABLE_SCALE, output_scale
from latentforge.model.logit_features import LinearFeatures
from latentforge.model.student import Student

V, K, D = 64, 4, 16


def make_autoencoder_config(**changes: Any) -> AutoencoderConfig:
    sizes = {"hidden_size": 16, "chunk_hidden_size": 32, "intermediate_size": 24, "latent_size": D}
    return AutoencoderConfig(**{"vocab_size": V, "chunk_size": K, "pad_id": 1, **sizes, **changes})


def make_student_config(**changes: Any) -> StudentConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    more = {"intermediate_size": 48, "embed_size": 8, "max_chunks": 16, "latent_size": D, "chunk_size": K}
    decoder = ChunkDecoderConfig(width=16, rank=8)
    return StudentConfig(
        **{"vocab_size": V, "pad_id": 1, "eos_id": 0, "chunk_decoder": decoder, **sizes, **more, **changes}
    )


MakeModel = Callable[..., LatentModel]


@pytest.fixture
def make_model() -> MakeModel:
    """Makes a tiny, randomly initialised pair; keywords change the student's config, shared sizes both."""

    def make(**changes: Any) -> LatentModel:
        torch.manual_seed(7)
        shared = {name: changes[name] for name in ("vocab_size", "chunk_size", "latent_size") if name in changes}
        model = LatentModel(
            Autoencoder(make_autoencoder_config(**shared)), Student(make_student_config(**changes))
        ).eval()
        with torch.no_grad():
            # Parts start at zero or small; random ones leave no path unused.
            for parameter in model.student.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
                elif parameter.ndim == 3:
                    # A recurrent decoder's first state.
                    parameter.normal_()
            student = model.student
            own = student.logit_features
            for part in (student.chunk_decoder, own if isinstance(own, LinearFeatures) else None):
                if part is not None:
                    part.output.weight /= output_scale(part.output.weight.shape[1])
            student.embedding.weight /= TABLE_SCALE
            student.bias.normal_()
        return model

    return make


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def autoencoder_config() -> Callable[..., AutoencoderConfig]:
    return make_autoencoder_config


@pytest.fixture
def student_config() -> Callable[..., StudentConfig]:
    return make_student_config

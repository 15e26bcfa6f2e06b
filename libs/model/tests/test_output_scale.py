"""One learning rate serves learnt output tables of every width."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentforge.model.chunk_decoder.build import build_chunk_decoder
from latentforge.model.config import ChunkDecoderConfig, LogitFeaturesConfig, StudentConfig
from latentforge.model.logit_features import LinearFeatures
from latentforge.model.token_level import TokenLevelModel, token_level_config

MakeConfig = Callable[..., StudentConfig]


def _token_level(width: int, make: MakeConfig) -> tuple[Tensor, Tensor]:
    model = TokenLevelModel(token_level_config(make(hidden_size=width)))
    # As its last norm leaves it: entries near 1 at any width.
    layer = model.output_of(torch.ones(1, 1, width))
    return layer.inputs, model.output_table.weight


def _chunk_decoder(width: int, make: MakeConfig) -> tuple[Tensor, Tensor]:
    decoder = build_chunk_decoder(make(chunk_decoder=ChunkDecoderConfig(width=16, rank=width)))
    assert decoder is not None
    torch.nn.init.constant_(decoder.map.weight, 1 / 16)
    return decoder._reduce(torch.ones(1, 16)), decoder.output.weight


def _linear_features(width: int, make: MakeConfig) -> tuple[Tensor, Tensor]:
    config = make(logit_features=LogitFeaturesConfig(kind="linear", width=width))
    features = LinearFeatures(config)
    torch.nn.init.constant_(features.map.weight, 1 / config.hidden_size)
    torch.nn.init.zeros_(features.map.bias)
    return features(torch.ones(1, config.hidden_size))[:, 0], features.output.weight


@pytest.mark.parametrize("part", [_token_level, _chunk_decoder, _linear_features])
def test_a_step_of_a_table_moves_a_logit_as_far_at_any_width(
    part: Callable[[int, MakeConfig], tuple[Tensor, Tensor]], student_config: MakeConfig
) -> None:
    moved = []
    for width in (16, 64, 256):
        inputs, table = part(width, student_config)
        # AdamW moves each entry by about the rate; here all of them the way that raises the logit.
        step = torch.full_like(table, 0.01)
        moved.append(float((inputs @ step.T).detach()[0, 0]))
    assert moved == pytest.approx([moved[0]] * 3, rel=1e-4)
    assert moved[0] == pytest.approx(1.6, rel=1e-4)

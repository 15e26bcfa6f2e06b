"""The models with random weights, which their speed does not depend on."""

from dataclasses import replace

import torch

from benchmarks.inference.models import DEFAULT_DECODER, Decoder, random_twin, student_config, student_of
from benchmarks.inference.plan import ModelSize
from benchmarks.long_context.plan import LongContextModel
from latentforge.model.config import TokenLevelConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel, token_level_config


def twin_config(size: ModelSize, tokens: int) -> TokenLevelConfig:
    """Of the token-level model with a size's backbone and room for so many tokens."""
    return token_level_config(student_config(replace(size, chunk_size=1), DEFAULT_DECODER, tokens))


def build_model(
    of: LongContextModel, size: ModelSize, tokens: int, device: torch.device
) -> LatentModel | TokenLevelModel:
    """A model with room for so many tokens, a multiple of its K."""
    if of.chunk_size == 1:
        return random_twin(twin_config(size, tokens), device)
    sizes = replace(size, chunk_size=of.chunk_size)
    return student_of(student_config(sizes, Decoder(of.name, of.decoder), tokens, of.induction), device)

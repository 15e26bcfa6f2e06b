"""How many floating-point operations learning from a token takes, counted by torch: matrix products and attention."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, loss_of
from latentforge.model.token_level import TokenLevelModel


def student_flops(model: LatentModel | TokenLevelModel, tokens: int = 2048) -> float:
    """Of a student's forward and backward pass, per token; not those of its autoencoder's own training."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, model.vocab_size, (1, tokens), generator=generator)
    batch = StudentBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    weights = ObjectiveWeights(ce=1.0, kd=0.0, mse=0.0)
    return _counted(model, lambda: loss_of(model, batch, weights, generator).total) / tokens


def autoencoder_flops(autoencoder: Autoencoder, tokens: int = 2048) -> float:
    """Of an autoencoder's forward and backward pass, per token."""
    generator = torch.Generator().manual_seed(0)
    config = autoencoder.config
    chunks = torch.randint(2, config.vocab_size, (tokens // config.chunk_size, config.chunk_size), generator=generator)
    # As it was when it learnt: one that a student reads is frozen, and stays so.
    learning = copy.deepcopy(autoencoder).requires_grad_(True)
    return _counted(learning, lambda: learning.loss(chunks, generator).total) / chunks.numel()


def _counted(model: torch.nn.Module, loss: Callable[[], Tensor]) -> float:
    model.train()
    # The counter knows this product under its other name only.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _product_flops}) as counter:
        loss().backward()
    model.zero_grad()
    model.eval()
    return float(counter.get_total_flops())


def _product_flops(total: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Of total += left @ right, from the shapes."""
    return 2 * int(left[0]) * int(left[1]) * int(right[1])

"""From logits to a token."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

# A draw from many entries finds a block of them first: writing out their cumulative mass in float64 takes nine times as
# long as that (for 16 texts and 151,936 ids). Few entries are quicker done at once.
_BLOCK = 128
_WORTH_BLOCKS = 2**17

# Lower temperatures take the likeliest token, as vLLM's do: the quotients of a very low one are infinite.
LEAST_TEMPERATURE = 1e-5


class SamplingParams(BaseModel):
    """How tokens are drawn; checked when made.

    Attributes:
        temperature: divides the logits; 0, and what is below LEAST_TEMPERATURE, takes the likeliest token.
        top_p: keeps the likeliest tokens whose mass reaches this share.
        top_k: keeps this many of the likeliest tokens; 0 keeps all.
        seed: the same seed gives the same tokens; None draws a fresh one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        """A random generator of the call's own, started from ``seed``."""
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator | None = None) -> Tensor:
    """Draws one token for each of b texts.

    Args:
        logits: float [b, V]; -inf marks tokens that must not be drawn.
        params: temperature, then top_k, then top_p are applied.
        generator: on the logits' device; takes one uniform number for each text.

    Returns:
        int64 [b].
    """
    if params.temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    scaled = logits.float() if params.temperature == 1 else logits.float() / params.temperature
    if params.top_k and params.top_k < logits.shape[-1]:
        scaled, kept_ids = scaled.topk(params.top_k, dim=-1)
    elif params.top_p < 1:
        scaled, kept_ids = scaled.sort(dim=-1, descending=True)
    else:
        return _draw(scaled.softmax(-1), generator)
    mass = scaled.softmax(-1)
    if params.top_p < 1:
        # Tokens are sorted here. The one that takes the sum to top_p is the last that is kept, so that one always is.
        cumulative = mass.cumsum(-1, dtype=torch.float64)
        last = torch.searchsorted(cumulative, params.top_p * cumulative[:, -1:]).clamp_(max=mass.shape[-1] - 1)
        mass.masked_fill_(torch.arange(mass.shape[-1], device=mass.device) > last, 0)
    return kept_ids.gather(-1, _draw(mass, generator)[:, None])[:, 0]


def sample_with_logprobs(
    logits: Tensor, params: SamplingParams, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The same with each token's log probability before temperature and truncation, float32 [b]."""
    if params.temperature == 1 and params.top_p == 1 and not params.top_k:
        # What it is drawn from says it already.
        mass = logits.float().softmax(-1)
        ids = _draw(mass, generator)
        return ids, mass.gather(-1, ids[:, None])[:, 0].log()
    ids = sample(logits, params, generator)
    return ids, logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _draw(mass: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws an entry in proportion to mass [b, n], which need not sum to 1: int64 [b].

    By inversion: the entry in which a uniform share of the whole mass lies. In float64, where the sum of 151,936 small
    numbers still tells neighbours apart.
    """
    uniform = torch.rand((len(mass), 1), dtype=torch.float64, device=mass.device, generator=generator)
    if mass.shape[-1] <= _BLOCK or mass.numel() < _WORTH_BLOCKS:
        return _find(mass.cumsum(-1, dtype=torch.float64), uniform)[0][:, 0]
    # Inversion twice: which block of 128 entries the threshold lies in, then which entry of that block.
    short = -mass.shape[-1] % _BLOCK
    blocks = (F.pad(mass, (0, short)) if short else mass).unflatten(-1, (-1, _BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum_(-1)
    block, threshold = _find(ends, uniform)
    start = F.pad(ends, (1, 0)).gather(1, block)
    within = (threshold - start) / (ends.gather(1, block) - start)
    entries = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0]
    return (block * _BLOCK + _find(entries.cumsum(-1, dtype=torch.float64), within)[0])[:, 0]


def _find(cumulative: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of cumulative mass [b, n] in which the shares ``uniform`` of it lie, and those shares as mass.

    Args:
        cumulative: float64 [b, n], ascending; the last entries are above 0.
        uniform: float64 [b, 1], from 0 to 1.

    Returns:
        int64 [b, 1], always an entry that has mass; float64 [b, 1].
    """
    # The first entry whose cumulative mass exceeds the threshold has mass; rounding must not reach the total.
    threshold = uniform * (cumulative[:, -1:] * (1 - 2**-50))
    return torch.searchsorted(cumulative, threshold, right=True), threshold

"""A fault of vLLM 0.32's CPU build that makes sampled text wrong wherever anything drafts, and its mending.

Where temperature, top-k or top-p are spread over the tokens of drafts, the CPU's kernel writes into a copy of what it
is given, so that every token gets what lay in memory by chance (``cpu_triton_utils._expand_kernel_impl``). Greedy text
does not come that way.
"""

import logging
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_SAMPLER = "vllm.v1.sample.rejection_sampler"
_NAME = "expand_batch_to_tokens"


def mend_sampling() -> bool:
    """Puts a sound function in the place of vLLM's where that is wrong; says whether it was."""
    sampler: Any = import_module(_SAMPLER)
    if _is_sound(getattr(sampler, _NAME)):
        return False
    setattr(sampler, _NAME, expanded)
    logger.warning("this vLLM spreads temperatures over drafts wrongly on a CPU (%s.%s); mended", _SAMPLER, _NAME)
    return True


def expanded(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Tensor:
    """Each request's number for each of its tokens, [num_tokens], of the same dtype.

    Args:
        x: one number a request, [b].
        cu_num_tokens: tokens up to and with each request's, int [b].
        num_tokens: of all.
        replace_from: numbers that equal it become
        replace_to: this one.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    out = x.repeat_interleave(counts, output_size=num_tokens)
    return out if replace_from == replace_to else out.masked_fill_(out == replace_from, replace_to)


def _is_sound(expand: Any) -> bool:
    """Two questions, since memory may hold the right answer to one by chance."""
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    for numbers in ([0.25, 9.0, 0.75], [0.5, 9.0, 0.125]):
        first, _, last = numbers
        if expand(torch.tensor(numbers), ends, 5).tolist() != [first] * 2 + [last] * 3:
            return False
    return True

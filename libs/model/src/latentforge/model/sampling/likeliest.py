"""The likeliest tokens of each row without sorting it; of equally likely ones lower ids come first."""

import math

import torch
from torch import Tensor

from latentforge.model.sampling.blocks import BLOCK, block_entries, block_maxima

# Shorter rows are quicker looked at as a whole.
_WORTH_BLOCKS = 1024


def likeliest_one(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest of each row [b, V] and the lowest id that has it: [b] and int64 [b]; NaN is greater than all."""
    if logits.device.type != "cpu" or logits.shape[-1] < _WORTH_BLOCKS:
        ids = logits.argmax(-1, keepdim=True)
        return logits.gather(1, ids)[:, 0], ids[:, 0]
    # argmax looks at one number at a time, amax at sixteen.
    block = block_maxima(logits).argmax(-1, keepdim=True)
    entries = block_entries(logits, block)
    within = entries.argmax(-1, keepdim=True)
    return entries.gather(1, within)[:, 0], (block * BLOCK + within)[:, 0]


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` greatest of each row [b, V], greatest first, and their ids: [b, count] and int64 [b, count].

    Exactly what a stable sort puts first. A row that has a NaN gives some of its ids.
    """
    num_sets = logits.shape[-1] // max(1, round(math.sqrt(logits.shape[-1] / count)))
    if logits.device.type != "cpu" or num_sets < 4 * count:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, :count], ids[:, :count]
    # Entries j, j + num_sets, j + 2·num_sets … are a set. Those above the count-th greatest entry lie in fewer than
    # count sets, which therefore are among the count sets of greatest maxima.
    size = logits.shape[-1] // num_sets
    maxima = logits[:, : size * num_sets].unflatten(-1, (size, num_sets)).amax(1)
    members = torch.arange(0, size * num_sets, num_sets)
    rest = torch.arange(size * num_sets, logits.shape[-1]).expand(len(logits), -1)
    among = (maxima.topk(count).indices[:, :, None] + members).flatten(1)
    among = torch.cat([among, rest], -1)
    values, at = logits.gather(1, among).topk(count)
    ids, least = among.gather(1, at), values[:, -1:]
    # A set or an entry that is left out may have an entry as great as the last one, of a lower id.
    ties = ((maxima >= least).sum(-1) > count) | ((logits.gather(1, among) >= least).sum(-1) > count)
    for row in ties.nonzero()[:, 0].tolist():
        ids[row] = _lowest_ids(logits[row], least[row], count)
    # In order of ids first, then stably in order of values.
    ids = ids.sort(-1).values
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _lowest_ids(row: Tensor, least: Tensor, count: int) -> Tensor:
    above = (row > least).nonzero()[:, 0]
    return torch.cat([above, (row == least).nonzero()[: count - len(above), 0]])

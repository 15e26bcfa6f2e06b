"""The likeliest tokens of each row without sorting it; of equally likely ones lower ids come first."""

import math

import torch
from torch import Tensor

from latentforge.model.sampling.blocks import BLOCK, block_entries, block_maxima, places

# Shorter rows are quicker looked at as a whole.
_WORTH_BLOCKS = 1024
_WORTH_SETS = 4097


def likeliest_one(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest of each row [b, V] and the lowest id that has it: [b] and int64 [b]; NaN is greater than all."""
    if logits.device.type != "cpu" or logits.shape[-1] < _WORTH_BLOCKS:
        ids = logits.argmax(-1, keepdim=True)
        return logits.gather(1, ids)[:, 0], ids[:, 0]
    # argmax looks at one number at a time, amax at sixteen.
    block = block_maxima(logits).argmax(-1, keepdim=True)
    values, within = block_entries(logits, block).max(-1)
    return values, within.add_(block[:, 0], alpha=BLOCK)


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` greatest of each row [b, V], greatest first, and their ids: [b, count] and int64 [b, count].

    Exactly what a stable sort puts first. A row that has a NaN gives some of its ids.
    """
    vocab_size = logits.shape[-1]
    num_sets = vocab_size // max(1, round(math.sqrt(vocab_size / count)))
    if logits.device.type != "cpu" or num_sets < 4 * count:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, :count], ids[:, :count]
    if vocab_size < _WORTH_SETS:
        values, ids = logits.topk(count + 1)
        is_tied = values[:, 1:] == values[:, :-1]
    else:
        values, ids, is_tied = _of_sets(logits, count, num_sets)
    # Equal ones come in any order, also when it matters which of them is the last.
    for row in is_tied.any(-1).nonzero()[:, 0].tolist() if is_tied.any() else ():
        ids[row, :count] = _in_order(logits[row], values[row, count - 1], count)
        values[row] = logits[row, ids[row]]
    return values[:, :count], ids[:, :count]


def _of_sets(logits: Tensor, count: int, num_sets: int) -> tuple[Tensor, Tensor, Tensor]:
    """The count + 1 greatest, and where their order is not certain, bool [b, count + 1].

    Entries j, j + num_sets, j + 2·num_sets … are a set. What is greater than the count-th greatest entry lies in fewer
    than count sets, so in sets of the count greatest maxima.
    """
    size = logits.shape[-1] // num_sets
    whole = size * num_sets
    maxima, sets = logits[:, :whole].unflatten(-1, (size, num_sets)).amax(1).topk(count + 1)
    members = torch.add(sets[:, :count, None], places(size, logits.device), alpha=num_sets).flatten(1)
    if whole < logits.shape[-1]:
        rest = places(logits.shape[-1], logits.device)[whole:].expand(len(logits), -1)
        members = torch.cat([members, rest], -1)
    values, at = logits.gather(1, members).topk(count + 1)
    # The sets that are left out may have an entry as great as the count-th one.
    is_tied = torch.cat([values[:, 1:] == values[:, :-1], maxima[:, count:] >= values[:, count - 1 : count]], -1)
    return values, members.gather(1, at), is_tied


def _in_order(row: Tensor, least: Tensor, count: int) -> Tensor:
    """Ids of the ``count`` greatest of one row [V], the last of which are ``least``."""
    above = (row > least).nonzero()[:, 0]
    ids = torch.cat([above, (row == least).nonzero()[: count - len(above), 0]])
    # They are in order of ids.
    return ids[row[ids].sort(descending=True, stable=True).indices]

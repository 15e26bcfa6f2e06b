import random

import torch
from torch import Tensor

from latentforge.model.config import InductionConfig
from latentforge.model.decoding.induction import FoundTokens, SlotInduction
from latentforge.model.induction import InductionHead

B, L, E, V, OUT, K, PAD = 3, 24, 6, 9, 5, 4, 0


def make_head(context: int, num_heads: int) -> InductionHead:
    torch.manual_seed(context)
    head = InductionHead(E, OUT, InductionConfig(context=context, num_heads=num_heads, size=8)).double()
    torch.nn.init.normal_(head.out.weight)
    with torch.no_grad():
        head.nothing.copy_(torch.arange(num_heads) + 0.3)
        head.log_sharpness.copy_(torch.arange(num_heads) / 3 + 0.9)
        head.gain.copy_(torch.arange(num_heads) - 0.6)
    return head


def check(slots: SlotInduction, found: FoundTokens, vectors: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(found.values @ slots.out.T, vectors)
    row = torch.zeros(len(logits), V, dtype=torch.float64).scatter_add_(1, found.ids, found.boosts)
    # Boosts of the pad are of no token: its logit is -inf.
    torch.testing.assert_close(row[:, 1:], logits[:, 1:])


@torch.no_grad()
def test_ragged_texts_find_what_each_finds_as_a_whole() -> None:
    """Prompts of whole chunks in pieces, then chunks token by token, some of the texts at a time."""
    rng = random.Random(5)
    for context, num_heads in ((1, 1), (2, 3), (5, 2)):
        head = make_head(context, num_heads)
        ids, embedded = torch.randint(1, V, (B, L)), torch.randn(B, L, E, dtype=torch.float64)
        whole = head(ids, embedded).look_up()
        vectors = whole.vectors.unflatten(0, (B, L))
        logits = torch.zeros(B * L, V, dtype=torch.float64).scatter_add(1, whole.ids, whole.boosts).unflatten(0, (B, L))
        known = torch.cat([torch.zeros(B, context, E, dtype=torch.float64), embedded], 1)
        slots = SlotInduction(head, B, L, K, PAD)
        lengths = [0, 8, 12]
        for slot, length in enumerate(lengths):
            for first in range(0, length, 8):
                end = min(first + 8, length)
                slots.read(slot, first, ids[slot, first:end], known[slot, first : end + context])
            if length:
                check(slots, slots.find_all(slot, 2, length), vectors[slot, 2:length], logits[slot, 2:length])
        while min(lengths) < L:
            ready = [slot for slot in range(B) if lengths[slot] < L]
            rows = sorted(rng.sample(ready, rng.randint(1, len(ready))))
            for slot, length in enumerate(lengths):
                slots.tail[slot, :context] = known[slot, length : length + context]
            slots.begin(0, lengths)
            for k in range(K):
                found = slots.find(k)
                at = [lengths[slot] + k for slot in rows]
                mine = FoundTokens(*(part[rows] for part in found))
                check(slots, mine, vectors[rows, at], logits[rows, at])
                read = torch.zeros(B, dtype=torch.int64)
                read[rows] = ids[rows, at]
                slots.tail[rows, context + k] = embedded[rows, at]
                slots.read_token(k, read)
            slots.end(torch.tensor(rows), rows, lengths)
            for slot in rows:
                lengths[slot] += K

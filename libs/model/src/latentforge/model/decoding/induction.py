"""Induction heads over texts in slots of memory that is allocated once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.induction import InductionHead
from latentforge.model.layers import TABLE_SCALE, output_scale

_TINY = 1e-12


class FoundTokens(NamedTuple):
    """What stands in n texts behind the places that are like the next token's.

    Attributes:
        values: the heads' values, float [n, heads·size]; :attr:`SlotInduction.out` maps them to the output's width.
        boosts: float [n, columns], to be added to the logits of
        ids: int64 [n, columns].
    """

    values: Tensor
    boosts: Tensor
    ids: Tensor


class SlotInduction:
    """An :class:`InductionHead` that looks up in ``num_slots`` texts of up to ``max_tokens`` tokens.

    A token is an entry: the key of the place before it, a map of the ``context`` tokens there, and its value. A slot's
    columns are, in this order: the K entries of the chunk that is being written, its last token first; the score
    of finding nothing; the tokens before the chunk. Written and read are views, however long each text is, and one
    operation at a chunk's end moves its entries to where they belong. The first columns are in falling order so that
    what is known of the chunk lies beside the rest: one softmax does for all of it.

    Finding nothing is an entry with a zero key and value, its score in ``base`` and the id of the pad, whose logit is
    -inf whatever is added. Entries behind a text's end have a base of -inf; their numbers must be finite.

    Attributes:
        tail: the embedded tokens that the heads read in a chunk, float [num_slots, context + K, e]: the ``context``
            before it, zeros before the text, then its own; whoever draws them writes them here.
        out: maps found values to the output's width, [out_size, heads·size].
    """

    def __init__(self, head: InductionHead, num_slots: int, max_tokens: int, chunk_size: int, pad_id: int) -> None:
        self._heads, self._size, self._context, self._k = head.heads, head.size, head.context, chunk_size
        value, weight = head.value.weight.detach(), head.read.weight.detach()
        self._embed_size = embed_size = value.shape[1]
        # The value is a map of the last of the context's tokens: padded, it is made by the same product as the key.
        padded = F.pad(value, ((self._context - 1) * embed_size, 0))
        by_head = [part.unflatten(0, (self._heads, self._size)) for part in (weight, padded)]
        self._read_weight = torch.cat(by_head, 1).flatten(0, 1)
        self.out = head.out.weight.detach() * output_scale(head.out.out_features)
        # As both keys of a product are multiplied by the sharpness' root, one set serves as queries too.
        self._sharpness = (head.log_sharpness.detach() / 2).exp().repeat(num_slots)[:, None]
        self._gain = (head.gain.detach() * TABLE_SCALE).expand(num_slots, 1, -1).contiguous()
        # A multiple of 16 columns, so that every slot begins at a multiple of 64 bytes.
        columns = -(-(chunk_size + 1 + max_tokens) // 16) * 16
        device, zeros = value.device, value.new_zeros
        # A key's entries lie in a column: scores of one query are then sums of rows, which the processor reads as they
        # lie (at 16 texts of 1,000 tokens in a quarter of the time that keys side by side take).
        self.keys = zeros(num_slots, self._heads, self._size, columns)
        self.values = zeros(num_slots, self._heads, columns, self._size)
        self.ids = torch.full((num_slots, columns), pad_id, device=device)
        self.base = zeros(num_slots, self._heads, 1, columns)
        self.base[..., chunk_size] = head.nothing.detach()[:, None]
        self.tail = zeros(num_slots, self._context + chunk_size, embed_size)
        self._places = torch.arange(chunk_size, device=device)
        for slot in range(num_slots):
            self.clear(slot)

    @property
    def num_bytes(self) -> int:
        """Of the memory of all slots."""
        return sum(memory.nbytes for memory in (self.keys, self.values, self.ids, self.base, self.tail))

    def clear(self, slot: int) -> None:
        """Forgets what a slot's last text left."""
        self.keys[slot].zero_()
        self.values[slot].zero_()
        self.base[slot, ..., self._k + 1 :] = -torch.inf

    def take_back(self, slot: int, length: int) -> None:
        """Forgets a text's tokens from token ``length`` on."""
        self.base[slot, ..., self._k + 1 + length :] = -torch.inf

    def move(self, source: int, target: int) -> None:
        """Takes a text to another slot."""
        for memory in (self.keys, self.values, self.ids, self.base):
            memory[target] = memory[source]

    def read(self, slot: int, first: int, ids: Tensor, embedded: Tensor) -> None:
        """Reads tokens of a text from its token ``first`` on.

        Args:
            slot: the text's.
            first: how many of its tokens have been read.
            ids: int64 [t].
            embedded: the ``context`` tokens before them and they, float [context + t, e]; zeros before the beginning.
        """
        windows = embedded.unfold(0, self._context, 1).transpose(1, 2).flatten(1)
        made = F.linear(windows, self._read_weight).view(len(windows), self._heads, 2 * self._size)
        # A token is found by the key of the place before it, the window that ends there.
        places, values = made[:-1, :, : self._size], made[1:, :, self._size :]
        keys = places * _factor(places, self._sharpness[: self._heads])
        begin = self._k + 1 + first
        columns = slice(begin, begin + len(ids))
        self.keys[slot, ..., columns] = keys.permute(1, 2, 0)
        self.values[slot, :, columns] = values.transpose(0, 1)
        self.ids[slot, columns] = ids
        self.base[slot, ..., columns] = 0

    def find_all(self, slot: int, first: int, end: int) -> FoundTokens:
        """What is found before each of a text's tokens ``first`` … ``end - 1``, all of which have been read."""
        begin = self._k + 1
        # A token's entry has the key of the place before it, which is also what is asked for there.
        queries = self.keys[slot, ..., begin + first : begin + end].mT
        known = slice(self._k, begin + end - 1)
        scores = torch.baddbmm(self.base[slot, ..., known], queries, self.keys[slot, ..., known])
        # Column j ≥ 1 is token j - 1, and token i is found out of those before it.
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu_(first + 1)
        shares = scores.masked_fill_(later, -torch.inf).softmax(-1)
        values_th = torch.bmm(shares, self.values[slot, :, known]).transpose(0, 1).flatten(1)
        boosts = torch.tensordot(self._gain[0, 0], shares, 1)
        return FoundTokens(values_th, boosts, self.ids[slot, known].expand(len(boosts), -1))

    def begin(self, first_slot: int, lengths: Sequence[int]) -> None:
        """Begins a chunk of the texts in the slots from ``first_slot`` on, so many tokens long; ``tail`` knows them."""
        slots = slice(first_slot, first_slot + len(lengths))
        self._num, self._slots, self._end = len(lengths), slots, self._k + 1 + max(lengths)
        flat = len(lengths) * self._heads
        # Of n texts and h heads as one batch: views, made once a chunk.
        self._keys, self._values = self.keys[slots].flatten(0, 1), self.values[slots].flatten(0, 1)
        # The chunk's own, its last token first.
        self._own_keys = self._keys[..., : self._k].unbind(-1)
        self._own_values = self._values[:, : self._k].unbind(1)
        self._flat_base = self.base[slots].view(flat, 1, -1)
        self._flat_sharpness = self._sharpness[:flat]
        self._chunk_ids, self._chunk_gain = self.ids[slots], self._gain[slots]
        self._chunk_tail = self.tail[slots].flatten(1)
        self._read_window(0)

    def find(self, k: int) -> FoundTokens:
        """What is found before token k of the chunk, when the tokens before it have been read."""
        begin = self._k - k
        num = self._end - begin
        keys, base = self._keys.narrow(2, begin, num), self._flat_base.narrow(2, begin, num)
        # One query for each text and head.
        shares = torch.baddbmm(base, self._query, keys).softmax(-1)
        values = torch.bmm(shares, self._values.narrow(1, begin, num)).view(self._num, -1)
        boosts = torch.bmm(self._chunk_gain, shares.view(self._num, self._heads, num))
        return FoundTokens(values, boosts.view(self._num, num), self._chunk_ids.narrow(1, begin, num))

    def read_token(self, k: int, ids: Tensor) -> None:
        """Reads token k of the chunk, int64 [n], whose embeddings are in ``tail``."""
        self._chunk_ids.select(1, self._k - 1 - k).copy_(ids)
        self._read_window(k + 1)

    def end(self, rows: Tensor, row_ids: Sequence[int], lengths: Sequence[int]) -> None:
        """Ends the chunk: keeps its entries for some of the texts, int64 [r] and the same as ints."""
        keys, values = self.keys[self._slots], self.values[self._slots]
        ids, base = self._chunk_ids, self.base[self._slots]
        first = self._k + 1
        if len(row_ids) == 1:
            row = row_ids[0]
            columns = slice(first + lengths[row], first + lengths[row] + self._k)
            keys[row, ..., columns] = keys[row, ..., : self._k]
            values[row, :, columns] = values[row, :, : self._k]
            ids[row, columns] = ids[row, : self._k]
            base[row, ..., columns] = 0
            return
        begins = torch.tensor([lengths[row] for row in row_ids], device=rows.device) + first
        columns_rk = begins[:, None] + self._places
        rows_r1 = rows[:, None]
        keys[rows_r1, :, :, columns_rk] = keys[rows, ..., : self._k].permute(0, 3, 1, 2)
        values[rows_r1, :, columns_rk] = values[rows, :, : self._k].transpose(1, 2)
        ids[rows_r1, columns_rk] = ids[rows, : self._k]
        base[rows_r1, :, 0, columns_rk] = 0

    def _read_window(self, k: int) -> None:
        """Makes the key of place k and the value of the token before it, of the chunk that is being written."""
        window = self._chunk_tail.narrow(1, k * self._embed_size, self._context * self._embed_size)
        places, values = F.linear(window, self._read_weight).view(-1, 2 * self._size).split(self._size, 1)
        if k < self._k:
            key = places * _factor(places, self._flat_sharpness)
            # What is asked for before token k, and the entry that finds it later.
            self._query = key[:, None]
            self._own_keys[self._k - 1 - k].copy_(key)
        if k:
            self._own_values[self._k - k].copy_(values)


def _factor(places: Tensor, sharpness: Tensor) -> Tensor:
    """What makes keys of the places' maps, float [..., size]: their direction, times the sharpness."""
    norms: Tensor = torch.linalg.vector_norm(places, dim=-1, keepdim=True)
    return sharpness / norms.clamp_min_(_TINY)

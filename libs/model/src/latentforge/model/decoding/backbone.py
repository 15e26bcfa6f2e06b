"""A Qwen3 or Llama backbone over keys and values in slots: one step of many texts, and prompts in pieces.

The numbers are those of transformers' models up to rounding; it is written out here because a step of a small
student is mostly the time of starting operations, and those are kept few.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.backbone import Backbone
from latentforge.model.decoding.fusion import FusedSwiGLU, fused_weight

# On a processor a text's call takes as long as reading so many keys and values of one head (16 texts of 256 to 8,192
# positions, AMD EPYC, one thread), and the texts' calls a fifth longer than one that reads as much.
_CALL_KEYS, _CALLS_SHARE = 512, 0.25
# What a layer's attention gives for queries [n, heads, d], keys and values [n, kv_heads, d]: float [n, heads·d]; None
# ends the pass, where only the keys and values are wanted.
_Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]


class PromptPiece(NamedTuple):
    """Positions ``first`` … ``first + length - 1`` of the text in a slot."""

    slot: int
    first: int
    length: int


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    qkv: Tensor
    qk_norm: Tensor | None
    out: Tensor
    mlp: FusedSwiGLU


class SlotBackbone:
    """The backbone of :class:`Backbone`, with memory for ``num_slots`` texts of ``max_positions`` positions.

    A text's column 0 holds the keys and values of the position that is being computed: so a step writes views, however
    long each text is, and one operation at its end moves them to where they belong. Columns behind a text's end hold
    finite numbers of no meaning, which the mask hides.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_slots: int,
        max_positions: int,
        *,
        by_column: bool = False,
        kept_layer: int | None = None,
    ) -> None:
        """Fuses the backbone's weights in place (see :func:`fused_weight`).

        ``kept_layer``: of which layer's inputs the last :meth:`read` are kept, in ``kept`` [n, h].
        """
        config: Any = backbone.config
        self._heads: int
        self._kv_heads: int
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._size, self._eps = config.head_dim, config.rms_norm_eps
        self._layers = [_layer(layer, self._heads, self._kv_heads, by_column) for layer in backbone.layers]
        self._norm = backbone.norm.weight.detach()
        device, dtype = self._norm.device, self._norm.dtype
        # Keys, values: [2, layers, slots, kv_heads, 1 + positions, d].
        size = 2, len(self._layers), num_slots, self._kv_heads, 1 + max_positions, self._size
        self.memory = torch.zeros(size, dtype=dtype, device=device)
        self.keeps, self._kept_layer, self.kept = kept_layer is not None, kept_layer, self._norm
        self._cos, self._sin = _rotary_tables(backbone, 1 + max_positions, dtype)
        self._columns = torch.arange(1 + max_positions, device=device)

    @property
    def num_bytes(self) -> int:
        """Of the memory."""
        return self.memory.nbytes

    def clear(self, slot: int) -> None:
        """Forgets what a slot's last text left: hidden numbers must be finite, since 0 · NaN is NaN."""
        self.memory[:, :, slot].zero_()

    def move(self, source: int, target: int) -> None:
        """Takes a text to another slot."""
        self.memory[:, :, target] = self.memory[:, :, source]

    def step(
        self, inputs: Tensor, first_slot: int, positions: Sequence[int], rows: Tensor, row_ids: Sequence[int]
    ) -> Tensor:
        """One position of each text in the slots from ``first_slot`` on.

        Args:
            inputs: float [n, h].
            first_slot: the slot of the first of the n texts.
            positions: at which position each stands, n of them.
            rows: the texts among them whose keys and values are kept, int64 [r], ascending; of the others nothing is.
            row_ids: the same as ints.

        Returns:
            Hidden states, float [n, h].
        """
        num, end = len(positions), 1 + max(positions)
        at = torch.tensor(positions, device=inputs.device)
        one_by_one = self._is_ragged(positions)
        mask = None
        if min(positions) + 1 < end and not one_by_one:
            mask = (self._columns[:end] <= at[:, None])[:, None, None]
        slots = self.memory[:, :, first_slot : first_slot + num]
        # The heads of a group are queries of their one key head: no key is copied for them.
        grouped = num, self._kv_heads, self._heads // self._kv_heads, self._size

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            known_keys, known_values = slots[0, layer], slots[1, layer]
            known_keys[:, :, 0] = keys
            known_values[:, :, 0] = values
            queries = queries.view(grouped)
            if not one_by_one:
                seen = F.scaled_dot_product_attention(
                    queries, known_keys[:, :, :end], known_values[:, :, :end], attn_mask=mask
                )
                return seen.view(num, -1)
            texts = [
                F.scaled_dot_product_attention(
                    queries[i : i + 1], known_keys[i : i + 1, :, : 1 + own], known_values[i : i + 1, :, : 1 + own]
                )
                for i, own in enumerate(positions)
            ]
            return torch.cat(texts).view(num, -1)

        hidden = self._run(inputs, self._cos[at][:, None], self._sin[at][:, None], attend)
        assert hidden is not None
        if len(row_ids) == 1:
            row = row_ids[0]
            slots[:, :, row, :, 1 + positions[row]] = slots[:, :, row, :, 0]
        else:
            slots[:, :, rows, :, 1 + at[rows]] = slots[:, :, rows, :, 0].permute(2, 0, 1, 3, 4)
        return hidden

    def _is_ragged(self, positions: Sequence[int]) -> bool:
        """Whether each text attends by itself, because reading all up to the longest one's end would take longer.

        One text of 8,192 positions would make 15 short ones beside it as slow as itself. On a GPU, where starting a
        call takes longer than reading, all attend at once.
        """
        num, longest = len(positions), max(positions)
        padding = num * longest - sum(positions)
        is_worth_it = padding > _CALLS_SHARE * num * longest and padding * self._kv_heads > _CALL_KEYS * num
        return is_worth_it and self.memory.device.type == "cpu"

    def read(
        self, inputs: Tensor, pieces: Sequence[PromptPiece], *, want_hidden: bool = False, first_layer: int = 0
    ) -> Tensor | None:
        """Reads pieces of texts at once: inputs [n, h] are those of all pieces' positions, one behind the other.

        Args:
            inputs: of the backbone, or of its layer ``first_layer``.
            pieces: of different texts.
            want_hidden: whether hidden states are wanted.
            first_layer: it and those behind it read.

        Returns:
            Hidden states, float [n, h], if they are wanted.
        """
        last = len(self._layers) - 1
        at = torch.cat([self._columns[first : first + length] for _, first, length in pieces])
        bounds, masks = [], []
        start = 0
        for _, first, length in pieces:
            bounds.append((start, start + length))
            start += length
            square = torch.ones(length, first + length, dtype=torch.bool, device=inputs.device)
            masks.append(square.tril_(first))
        group = self._heads // self._kv_heads

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor | None:
            seen = []
            for (slot, first, length), (start, end), mask in zip(pieces, bounds, masks, strict=True):
                known_keys, known_values = self.memory[0, layer, slot], self.memory[1, layer, slot]
                until = 1 + first + length
                known_keys[:, 1 + first : until] = keys[start:end].transpose(0, 1)
                known_values[:, 1 + first : until] = values[start:end].transpose(0, 1)
                if layer == last and not want_hidden:
                    continue
                # [kv_heads, group, positions, d]: a key head is the same for its group of query heads.
                mine = queries[start:end].unflatten(1, (self._kv_heads, group)).permute(1, 2, 0, 3)
                found = F.scaled_dot_product_attention(
                    mine,
                    known_keys[:, None, 1:until].expand(-1, group, -1, -1),
                    known_values[:, None, 1:until].expand(-1, group, -1, -1),
                    attn_mask=mask,
                )
                seen.append(found.permute(2, 0, 1, 3).flatten(1))
            return torch.cat(seen) if seen else None

        return self._run(inputs, self._cos[at][:, None], self._sin[at][:, None], attend, first_layer)

    def _run(self, x: Tensor, cos: Tensor, sin: Tensor, attend: _Attend, first_layer: int = 0) -> Tensor | None:
        num, heads, half = len(x), self._heads, self._size // 2
        num_rotated = heads + self._kv_heads
        for index, layer in enumerate(self._layers[first_layer:], first_layer):
            if index == self._kept_layer:
                self.kept = x
            qkv = F.linear(self._normed(x, layer.input_norm), layer.qkv).view(num, -1, self._size)
            qk = qkv[:, :num_rotated]
            if layer.qk_norm is not None:
                qk = F.rms_norm(qk, (self._size,), None, self._eps).mul_(layer.qk_norm)
            # sin has the minus of rotate_half in its first half.
            qk = torch.addcmul(qk * cos, torch.cat([qk[..., half:], qk[..., :half]], -1), sin)
            seen = attend(index, qk[:, :heads], qk[:, heads:], qkv[:, num_rotated:])
            if seen is None:
                return None
            x = layer.mlp(torch.addmm(x, seen, layer.out))
        return self._normed(x, self._norm)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._eps)


class ConstantBackbone:
    """What stands in for the backbone of a student without layers: its inputs are of no size, and it keeps nothing."""

    num_bytes = 0

    def __init__(self, constant: Tensor) -> None:
        """``constant`` is every hidden state, float [h]."""
        self._constant = constant.detach()

    def clear(self, slot: int) -> None:
        """As of :class:`SlotBackbone`."""

    def move(self, source: int, target: int) -> None:
        """As of :class:`SlotBackbone`."""

    def step(
        self, inputs: Tensor, first_slot: int, positions: Sequence[int], rows: Tensor, row_ids: Sequence[int]
    ) -> Tensor:
        """As of :class:`SlotBackbone`; inputs are [n, 0]."""
        return self._constant.expand(len(inputs), -1)

    def read(self, inputs: Tensor, pieces: Sequence[PromptPiece], *, want_hidden: bool = False) -> Tensor | None:
        """As of :class:`SlotBackbone`; inputs are [n, 0]."""
        return self._constant.expand(len(inputs), -1) if want_hidden else None


def _layer(layer: Any, heads: int, kv_heads: int, by_column: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    qk_norm = None
    # A Llama has none.
    if hasattr(attention, "q_norm"):
        q_norm, k_norm = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        qk_norm = torch.cat([q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1)])
    return _Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=fused_weight([attention.q_proj, attention.k_proj, attention.v_proj], by_column=by_column),
        qk_norm=qk_norm,
        out=attention.o_proj.weight.detach().T,
        mlp=FusedSwiGLU(
            layer.post_attention_layernorm.weight,
            layer.post_attention_layernorm.variance_epsilon,
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            by_column=by_column,
        ),
    )


def _rotary_tables(backbone: Backbone, num_positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, [num_positions, d]; the first half of the sines with a minus."""
    rotary: Any = backbone.rotary_emb
    frequencies = rotary.inv_freq.float()
    angles = torch.arange(num_positions, device=frequencies.device).float()[:, None] * frequencies
    # Of YaRN; 1 elsewhere.
    scale: float = rotary.attention_scaling
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat([cos, cos], 1).to(dtype), torch.cat([-sin, sin], 1).to(dtype)

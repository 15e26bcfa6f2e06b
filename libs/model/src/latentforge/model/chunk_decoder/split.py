"""A chunk decoder made of the backbone's own last layers, which run at every token; its first ones run once a chunk.

A pretrained state is made to say what the next token is, and nothing makes it say what comes behind that one. The last
layers of the backbone are what turns features of the text into a token, and look up in the whole text what they need,
if they have features of the chunk's own tokens. Those, which the first layers make, a small GRU stands in for.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.backbone import Backbone
from latentforge.model.chunk_decoder.carried import CarriedDecoder
from latentforge.model.config import StudentConfig


class SplitDecoder(CarriedDecoder):
    """With m the number of the backbone's first layers, f_i what these make of position i, whose input is e_i, and
    chunk t at positions t·K … t·K + K - 1 (position i reads token i - 1 and predicts token i):

        g_i = GRU(x_0 … x_{i-1}), from ``start``
        s_i = e_i + scale · out(norm(blocks(g_i + S_k·f'_t + b_k)))    stands in for f_i, i = t·K + k, k = 1 … K - 1
        state before token i = the other layers at s_i, which see f_j for j ≤ t·K and s_j for t·K < j ≤ i

    where f'_t is f_{t·K}, normalised by ``border_norm``. Before a chunk's first token it is the backbone's own state.
    The next step reads the K tokens by all layers: so the layers' keys and values of earlier chunks are those of the
    backbone, and nothing of a stand-in lasts.

    Attributes:
        num_last: layers that run at every token.
        steer: S and b, from h to (K - 1)·width.
        scale: of what stands in for what the first layers add to their input, float [h].
    """

    # That of the pretrained output layer, where it starts from one, which learns as slowly as its table.
    map_name = "output_map"

    def __init__(self, config: StudentConfig) -> None:
        decoder = config.chunk_decoder
        super().__init__(config, 1, config.hidden_size)
        self.num_last = decoder.num_layers
        self.border_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.steer = nn.Linear(config.hidden_size, (config.chunk_size - 1) * decoder.width)
        self.out = nn.Linear(decoder.width, config.hidden_size)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))

    def steering(self, lower: Tensor) -> Tensor:
        """S·f' + b of f at borders, float [..., h]: float [..., K - 1, width]."""
        steering: Tensor = self.steer(self.border_norm(lower)).unflatten(-1, (self.chunk_size - 1, -1))
        return steering

    def stand_ins(self, inputs: Tensor, states: Tensor, steering: Tensor) -> Tensor:
        """s of positions inside of chunks, float [..., h].

        Args:
            inputs: e of the same positions, float [..., h].
            states: g before them, float [..., width].
            steering: of their chunks and places, float [..., width].
        """
        stand_ins: Tensor = inputs + self.scale * self.out(self.behind_blocks(states + steering))
        return stand_ins

    def text_states_over(
        self, backbone: Backbone, inputs: Tensor, embedded: Tensor, lower: Tensor | None = None
    ) -> Tensor:
        """The state before each token of whole texts, float [b, t, K, h].

        Args:
            backbone: whose layers run.
            inputs: e of all positions, float [b, t·K, h].
            embedded: x of the tokens, float [b, t·K, e].
            lower: taken for f of all positions, float [b, t·K, h]; None takes f.
        """
        k = self.chunk_size
        known, last = (
            self._known(backbone, inputs) if lower is None else _last_layers_alone(backbone, lower, self.num_last)
        )
        inside = torch.arange(inputs.shape[1], device=inputs.device).view(-1, k)[:, 1:]
        steering = self.steering(known[0][:, ::k])
        x = self.stand_ins(inputs[:, inside], self.text_states(embedded)[:, inside], steering).flatten(1, 2)
        x = _last_layers(backbone, known, x, inside.flatten(), k)
        return torch.cat([last[:, ::k, None], x.unflatten(1, (-1, k - 1))], 2)

    def lower_states(self, backbone: Backbone, inputs: Tensor) -> Tensor:
        """f of all positions, float [b, n, h], whose inputs are e, float [b, n, h]."""
        return self._known(backbone, inputs)[0][0]

    def _known(self, backbone: Backbone, inputs: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """The inputs of the last layers, one behind the other, and what comes out of the backbone's norm."""
        output = backbone(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        return output.hidden_states[-1 - self.num_last : -1], output.last_hidden_state

    def states(self, hidden: Tensor, *read: Tensor) -> Tensor:
        """The state before each token, float [n, K, h]: ``read``, as :meth:`text_states_over` has it."""
        (states,) = read
        return states


def _last_layers(backbone: Backbone, known: Sequence[Tensor], x: Tensor, positions: Tensor, chunk_size: int) -> Tensor:
    """Runs layers at positions that see what is known up to their chunk's first position, and each other from there on.

    Args:
        backbone: whose last layers they are, as many as are ``known``.
        known: inputs of those layers at all positions, float [b, n, h] each.
        x: inputs of the first of them, float [b, p, h].
        positions: where these stand, int64 [p].
        chunk_size: K.

    Returns:
        What comes out of the last one's norm, float [b, p, h].
    """
    every = torch.arange(known[0].shape[1], device=x.device)
    border = positions // chunk_size * chunk_size
    sees = torch.cat(
        [every <= border[:, None], (positions > border[:, None]) & (positions <= positions[:, None])], dim=1
    )
    rotary: Any = backbone.rotary_emb
    cos, sin = rotary(x, every[None])
    layers: Any = backbone.layers[-len(known) :]
    for layer, of_all in zip(layers, known, strict=True):
        _, *before = _heads(layer, of_all, cos, sin)
        queries, *own = _heads(layer, x, cos[:, positions], sin[:, positions])
        keys, values = (torch.cat(parts, 2) for parts in zip(before, own, strict=True))
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=sees, enable_gqa=True)
        x = _behind_attention(layer, x, seen)
    out: Tensor = backbone.norm(x)
    return out


def _last_layers_alone(backbone: Backbone, lower: Tensor, num: int) -> tuple[list[Tensor], Tensor]:
    """What ``num`` layers read one behind the other if the first of them read this, and what comes out of the norm."""
    rotary: Any = backbone.rotary_emb
    cos, sin = rotary(lower, torch.arange(lower.shape[1], device=lower.device)[None])
    known, layers = [lower], list(backbone.layers[-num:])
    for layer in layers:
        heads = _heads(layer, known[-1], cos, sin)
        seen = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        known.append(_behind_attention(layer, known[-1], seen))
    return known[:-1], backbone.norm(known[-1])


def _behind_attention(layer: Any, x: Tensor, seen: Tensor) -> Tensor:
    """What a layer makes of its inputs [b, n, h] and what its heads have seen, float [b, heads, n, d]."""
    x = x + layer.self_attn.o_proj(seen.transpose(1, 2).flatten(2))
    out: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return out


def _heads(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer's inputs [b, n, h], float [b, heads, n, d] each."""
    attention = layer.self_attn
    x = layer.input_layernorm(x)
    queries, keys, values = (
        project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # A Llama has no norms of them.
    if hasattr(attention, "q_norm"):
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    return _rotated(queries, cos, sin), _rotated(keys, cos, sin), values


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [b, heads, n, d] by [1, n, d] each."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

"""A split decoder's logits, slowly: its last layers run alone, on what each token sees, one token at a time."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.backbone import run_backbone
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.latent_model import LatentModel


@torch.no_grad()
def split_logits(model: LatentModel, tokens: Tensor, lower: Tensor | None = None) -> Tensor:
    """Logits [n, V] of one text, int64 [n], token by token, each with layers that know no other token's.

    ``lower``: taken for what the first layers make of each position, float [n, h].
    """
    k_size = model.chunk_size
    student, decoder, backbone = model.student, model.student.chunk_decoder, model.student.backbone
    assert isinstance(decoder, SplitDecoder)
    assert backbone is not None
    num_first = len(backbone.layers) - decoder.num_last
    first, last = copy.deepcopy(backbone), copy.deepcopy(backbone)
    first.layers, first.norm = first.layers[:num_first], nn.Identity()  # type: ignore[assignment]
    last.layers = last.layers[num_first:]
    for part in (first, last):
        part.config.num_hidden_layers = len(part.layers)
    cell = nn.GRUCell(decoder.gru.input_size, decoder.gru.hidden_size)
    weights = decoder.gru.all_weights[0]
    for ours, theirs in zip((cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), weights, strict=True):
        ours.data.copy_(theirs)
    embedded = student.embed(tokens)
    inputs = torch.cat([student.start[None], student.input_map(embedded)])
    logits, state = [], decoder.start[:, 0]
    stand_ins: list[Tensor] = []
    for i in range(len(tokens)):
        k, border = i % k_size, i - i % k_size
        known = run_backbone(first, inputs[None, : border + 1])[0] if lower is None else lower[: border + 1]
        if k == 0:
            stand_ins = []
        else:
            width = decoder.gru.hidden_size
            rows = slice((k - 1) * width, k * width)
            steering = (
                rms(known[-1], decoder.border_norm.weight) @ decoder.steer.weight[rows].T + decoder.steer.bias[rows]
            )
            made = state + steering
            for block in decoder.blocks:
                y = rms(made, block.norm.weight)  # type: ignore[union-attr,arg-type]
                inner = F.silu(y @ block.gate.weight.T) * (y @ block.up.weight.T)  # type: ignore[operator,union-attr]
                made = made + inner @ block.down.weight.T  # type: ignore[operator,union-attr]
            made = rms(made, decoder.norm.weight) @ decoder.out.weight.T + decoder.out.bias
            stand_ins.append(inputs[i] + decoder.scale * made[0])
        seen = torch.cat([known, *(s[None] for s in stand_ins)])
        written = run_backbone(last, seen[None])[0, -1]
        corrected = written @ decoder.map.weight.T * (160 / decoder.map.out_features) @ decoder.output.weight.T
        logits.append(student.bias + corrected)
        state = cell(embedded[i][None], state)
    return torch.stack(logits)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

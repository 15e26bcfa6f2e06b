"""Blocks that the autoencoder and the student share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# AdamW moves each entry by about the learning rate, whatever its gradient. Tables that are kept this much smaller than
# they act learn this much faster, so that one rate serves them and the matrices.
TABLE_SCALE = 10.0

_OUTPUT_SCALE_WIDTH = 160.0


class SwiGLU(nn.Module):
    """``x + down(silu(gate(norm(x))) * up(norm(x)))``: a residual block of a transformer's feed-forward layer.

    The last matrix starts at zero, so that a new block is the identity.
    """

    def __init__(self, size: int, intermediate_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(size, eps=1e-6)
        self.gate = nn.Linear(size, intermediate_size, bias=False)
        self.up = nn.Linear(size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, size, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., size] to [..., size]."""
        y = self.norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


def output_scale(width: int) -> float:
    """What the inputs of a learnt output table are multiplied by, where they have ``width`` entries: 160 / width.

    One AdamW step moves every entry of a token's vector by about the learning rate, and so its logit by ``width`` times
    as much: without the division (maximal update parametrisation, Yang et al., arXiv 2203.03466) wide models blow up at
    rates that narrow ones need. The constant comes from a few short runs, not from a sweep.
    """
    return _OUTPUT_SCALE_WIDTH / width


def output_table(vocab_size: int, width: int) -> nn.Embedding:
    """A learnt output table [V, width] that starts near zero; what it reads is to be scaled by :func:`output_scale`."""
    table = nn.Embedding(vocab_size, width)
    init_output_table(table)
    return table


def init_output_table(table: nn.Embedding) -> None:
    """Starts a learnt output table near zero."""
    nn.init.normal_(table.weight, std=0.002)


def log_frequencies(counts: Tensor) -> Tensor:
    """Log frequencies of tokens, float32 [V], from how often they stand in a text, int64 [V]; one is added to each."""
    logs = (counts + 1).float().log()
    return logs - logs.mean()


@torch.no_grad()
def init_slots(linear: nn.Linear, slots: int, *, alike: bool = False) -> None:
    """Gives each of ``slots`` equal parts of the input its own part of the output, by an orthogonal block.

    A chain of such layers and its mirror image is near the identity, so that an autoencoder starts almost invertible.
    Where the sizes cannot be split equally, the whole matrix is orthogonal instead.

    ``alike`` gives all parts the same block.
    """
    num_out, num_in = linear.weight.shape
    if num_out % slots or num_in % slots:
        nn.init.orthogonal_(linear.weight)
    else:
        linear.weight.zero_()
        block = torch.empty(num_out // slots, num_in // slots)
        for slot in range(slots):
            if slot == 0 or not alike:
                nn.init.orthogonal_(block)
            i, j = slot * block.shape[0], slot * block.shape[1]
            linear.weight[i : i + block.shape[0], j : j + block.shape[1]] = block
    if linear.bias is not None:
        linear.bias.zero_()

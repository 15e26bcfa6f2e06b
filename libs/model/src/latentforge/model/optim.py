"""Muon for the matrices, AdamW for the rest, and their state as plain tensors (no pickle)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# Of Keller Jordan's Muon (2024, https://kellerjordan.github.io/posts/muon/). The steep slope at 0 lifts small singular
# values fast, at the price of exactness: five iterations take every σ from 0.003 to 1 into 0.68 … 1.21.
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices_nij: Tensor, steps: int = 5) -> Tensor:
    """Maps each matrix to one with the same singular vectors and singular values near 1.

    Quintic Newton-Schulz iteration of Muon, without a singular value decomposition:

        X ← a·X + b·(X·Xᵀ)·X + c·(X·Xᵀ)²·X

    leaves the singular vectors and maps every singular value σ to a·σ + b·σ³ + c·σ⁵. torch.optim.Muon iterates in
    bfloat16, which takes 16 s a step for 7M parameters on a CPU without bfloat16 units; this one keeps float32 and
    batches equal shapes.

    Args:
        matrices_nij: float32 [n, i, j].
        steps: iterations.

    Returns:
        float32 [n, i, j]; of a zero matrix zeros.
    """
    a, b, c = _NS_COEFFICIENTS
    # The Gram matrix is made of the shorter side.
    tall = matrices_nij.shape[-2] > matrices_nij.shape[-1]
    x = matrices_nij.mT if tall else matrices_nij
    # The Frobenius norm is at least the largest singular value: all of them start in 0 … 1, as they must.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum, orthogonalised, for 2-D weights of hidden layers (Keller Jordan et al., 2024).

    With gradient G, momentum μ and weights P [i, j]:

        M ← μ·M + (1 - μ)·G
        P ← (1 - lr·weight_decay)·P - lr·0.2·√max(i, j)·orthogonalise((1 - μ)·G + μ·M)

    the momentum being Nesterov's. Why orthogonalise: a gradient's few large singular values would drown the many small
    ones, and every direction is to move alike. A matrix with singular values of 1 has entries of RMS 1 / √max(i, j);
    the factor gives the update the RMS of AdamW's, about 0.2, so that one learning rate serves both (Liu et al., arXiv
    2502.16982).
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in params])
                scale = 0.2 * max(shape) ** 0.5
                for p, update in zip(params, orthogonalise(updates), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def build_optimizers(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[Optimizer]:
    """Splits a model's trainable parameters: 2-D weights of hidden layers to Muon, the rest to AdamW.

    Token embeddings and output tables, which are all nn.Embedding here, are 2-D too, but each of their vectors is one
    token's: they go to AdamW, as with Muon's author. Weight decay is the hidden layers' alone.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in trainable if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in trainable if p.ndim != 2 or id(p) in embeddings]
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, lr=lr, weight_decay=weight_decay))
    if rest:
        optimizers.append(AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0))
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], lr: float) -> None:
    """Gives all of them the same rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def state_tensors(optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state under flat names, ready for safetensors."""
    return {
        f"{o}.{index}.{name}": value
        for o, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_state_tensors(optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Restores what :func:`state_tensors` gave, into optimizers built from the same model."""
    for o, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == o:
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

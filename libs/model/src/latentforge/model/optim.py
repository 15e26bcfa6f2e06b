"""Muon for the matrices, AdamW for the rest, and their state as plain tensors (no pickle)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices_nij: Tensor, steps: int = 5) -> Tensor:
    """Maps each matrix to one with the same singular vectors and singular values near 1.

    Quintic Newton-Schulz iteration of Muon (Keller Jordan, 2024). torch.optim.Muon iterates in bfloat16, which takes
    16 s a step for 7M parameters on a CPU without bfloat16 units; this one keeps float32 and batches equal shapes.

    Args:
        matrices_nij: float32 [n, rows, columns].
        steps: iterations.

    Returns:
        float32 [n, rows, columns].
    """
    a, b, c = _NS_COEFFICIENTS
    tall = matrices_nij.shape[-2] > matrices_nij.shape[-1]
    x = matrices_nij.mT if tall else matrices_nij
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum, orthogonalised, for 2-D weights of hidden layers.

    The update is scaled by 0.2·sqrt(max(rows, columns)) so that its RMS matches AdamW's and one learning rate serves
    both (Liu et al., arXiv 2502.16982).
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
    """Splits a model's trainable parameters: 2-D weights of hidden layers to Muon, the rest to AdamW."""
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

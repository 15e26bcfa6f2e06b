"""Muon for the matrices, AdamW for the rest, and their state as plain tensors (no pickle)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from latentforge.model.config import MuonDtype
from latentforge.model.sharded import piece_like, whole

# Of Keller Jordan's Muon (2024, https://kellerjordan.github.io/posts/muon/). The steep slope at 0 lifts small singular
# values fast, at the price of exactness: five iterations take every σ from 0.003 to 1 into 0.68 … 1.21.
_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def muon_dtype_of(asked: MuonDtype, device: torch.device) -> torch.dtype:
    """The format that Muon iterates in on a device."""
    if asked == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if asked == "fast":
        return torch.bfloat16 if device.type == "cuda" or _cpu_has_bfloat16() else torch.float32
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16: AVX512_BF16 or AMX of x86, BF16 of Arm."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def orthogonalise(matrices_nij: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Maps each matrix to one with the same singular vectors and singular values near 1.

    Quintic Newton-Schulz iteration of Muon, without a singular value decomposition:

        X ← a·X + b·(X·Xᵀ)·X + c·(X·Xᵀ)²·X

    leaves the singular vectors and maps every singular value σ to a·σ + b·σ³ + c·σ⁵. Equal shapes are one batch.

    Args:
        matrices_nij: float32 [n, i, j].
        steps: iterations.
        dtype: of the iteration. In bfloat16, as Muon's author iterates, the result is off by about 1 % of its length:
            far less than the iteration's own inexactness.

    Returns:
        float32 [n, i, j]; of a zero matrix zeros.
    """
    a, b, c = _NS_COEFFICIENTS
    # The Gram matrix is made of the shorter side.
    tall = matrices_nij.shape[-2] > matrices_nij.shape[-1]
    x = matrices_nij.mT if tall else matrices_nij
    # The Frobenius norm is at least the largest singular value: all of them start in 0 … 1, as they must.
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices_nij.dtype)
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

    Args:
        params: weights [i, j], or groups of them; a group's ``matrices`` is how many matrices lie one above the other
            in each of its weights (the gates of a GRU, fused queries, keys and values): each is orthogonalised as the
            matrix that it is.
        lr, momentum, weight_decay: as above.
        dtype: of the iteration.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "matrices": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step_alike(group, params)

    def _step_alike(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        """A step of weights of one shape."""
        momenta = torch.stack([whole(self._momentum(p, group["momentum"])) for p in params])
        apart = momenta.unflatten(1, (group["matrices"], -1)).flatten(0, 1)
        updates = orthogonalise(apart, dtype=self._dtype).unflatten(0, (len(params), -1)).flatten(1, 2)
        scale = 0.2 * max(apart.shape[1:]) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(piece_like(update, p), alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def build_optimizers(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    split: bool = False,
    muon_dtype: MuonDtype = "auto",
) -> list[Optimizer]:
    """Splits a model's trainable parameters: 2-D weights of hidden layers to Muon, the rest to AdamW.

    Token embeddings and output tables, which are all nn.Embedding here, are 2-D too, but each of their vectors is one
    token's: they go to AdamW, as with Muon's author. Weight decay is the hidden layers' alone.

    Args:
        model: on the device that it is trained on; AdamW's fused kernel is taken on CUDA.
        lr, weight_decay: of both.
        split: whether Muon takes the gates of a GRU and fused queries, keys and values apart.
        muon_dtype: what its iteration is in, see :func:`muon_dtype_of`.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in trainable if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in trainable if p.ndim != 2 or id(p) in embeddings]
    stacked = _stacked(model) if split else {}
    optimizers: list[Optimizer] = []
    if hidden:
        by_number: dict[int, list[nn.Parameter]] = {}
        for p in hidden:
            by_number.setdefault(stacked.get(id(p), 1), []).append(p)
        groups = [{"params": params, "matrices": number} for number, params in by_number.items()]
        dtype = muon_dtype_of(muon_dtype, hidden[0].device)
        optimizers.append(Muon(groups, lr=lr, weight_decay=weight_decay, dtype=dtype))
    if rest:
        fused = all(p.is_cuda for p in rest)
        optimizers.append(AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused or None))
    return optimizers


def _stacked(model: nn.Module) -> dict[int, int]:
    """How many matrices lie one above the other in a weight, by its id, where it is more than one."""
    found: dict[int, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.GRU):
            found |= {id(p): 3 for p in module.parameters() if p.ndim == 2}
        elif name.rpartition(".")[2] == "qkv" and isinstance(module, nn.Linear):
            found[id(module.weight)] = 3
    return found


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
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in tensors.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == o:
                state.setdefault(int(index), {})[name] = piece_like(value, parameters[int(index)])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

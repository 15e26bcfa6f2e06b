from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW, Optimizer

from latentforge.model.optim import (
    Muon,
    build_optimizers,
    load_state_tensors,
    muon_dtype_of,
    orthogonalise,
    set_learning_rate,
    state_tensors,
)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 12, 40), (3, 40, 12)])
def test_orthogonalise_keeps_singular_vectors_and_levels_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    got = orthogonalise(matrices, steps=8)
    inner = u.mT @ got @ v.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert (values > 0.5).all()
    assert (values < 1.3).all()
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 64, 192), (1, 128, 64)])
def test_in_bfloat16_it_is_the_same_but_for_rounding(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # As of gradients: singular values over three orders of magnitude.
    matrices = matrices * torch.logspace(0, -3, shape[2])
    exact, rounded = orthogonalise(matrices), orthogonalise(matrices, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert not rounded.equal(exact)
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    assert orthogonalise(torch.zeros(1, 4, 4), dtype=torch.bfloat16).equal(torch.zeros(1, 4, 4))


def test_auto_is_float32_on_a_cpu_and_fast_asks_it() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert muon_dtype_of("auto", cpu) == muon_dtype_of("float32", cuda) == torch.float32
    assert muon_dtype_of("auto", cuda) == muon_dtype_of("fast", cuda) == torch.bfloat16
    assert muon_dtype_of("bfloat16", cpu) == torch.bfloat16
    has_units = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert (muon_dtype_of("fast", cpu) == torch.bfloat16) == has_units


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muon_iterates_in_the_format_that_was_asked_for(dtype: Literal["float32", "bfloat16"]) -> None:
    weight = nn.Linear(64, 64, bias=False)
    weight.weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before, gradient = weight.weight.detach().clone(), weight.weight.grad.clone()
    build_optimizers(weight, lr=1.0, muon_dtype=dtype)[0].step()
    # Momentum and its Nesterov step scale the first gradient alone.
    wanted = before - 0.2 * 8 * orthogonalise(gradient[None], dtype=getattr(torch, dtype))[0]
    other = before - 0.2 * 8 * orthogonalise(gradient[None], dtype=torch.float64)[0]
    assert (weight.weight - wanted).abs().max() < (0.02 if dtype == "bfloat16" else 1e-5)
    assert ((weight.weight - other).abs().max() < 1e-4) == (dtype == "float32")


class Stacked(nn.Module):
    """A GRU's gates, fused queries, keys and values, and a matrix that is one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(6, 4)
        self.qkv = nn.Linear(5, 12)
        self.out = nn.Linear(12, 5)


def test_stacked_matrices_are_orthogonalised_one_by_one() -> None:
    stacked, apart = Stacked(), Stacked()
    rng = torch.Generator().manual_seed(1)
    for p, q in zip(stacked.parameters(), apart.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=rng)
        q.grad = p.grad.clone()
    muon, adamw = build_optimizers(stacked, lr=0.1, split=True)
    muon.step()
    # The same by hand, each part a parameter of its own.
    parts = {
        name: [nn.Parameter(part.clone()) for part in p.detach().chunk(1 if name == "out.weight" else 3)]
        for name, p in apart.named_parameters()
        if p.ndim == 2
    }
    for name, p in apart.named_parameters():
        if p.ndim == 2:
            assert p.grad is not None
            for part, grad in zip(parts[name], p.grad.chunk(len(parts[name])), strict=True):
                part.grad = grad.contiguous()
    Muon([part for of in parts.values() for part in of], lr=0.1).step()
    moved = dict(stacked.named_parameters())
    for name, wanted in parts.items():
        torch.testing.assert_close(moved[name].detach(), torch.cat([part.detach() for part in wanted]))
    whole = Stacked()
    for p, q in zip(whole.parameters(), apart.parameters(), strict=True):
        p.grad = q.grad
    build_optimizers(whole, lr=0.1)[0].step()
    assert whole.out.weight.equal(stacked.out.weight)
    assert not whole.gru.all_weights[0][1].equal(stacked.gru.all_weights[0][1])
    assert not whole.qkv.weight.equal(stacked.qkv.weight)
    assert not any(p.ndim == 2 for p in adamw.param_groups[0]["params"])


def test_a_zero_gradient_moves_nothing() -> None:
    assert orthogonalise(torch.zeros(1, 4, 4)).equal(torch.zeros(1, 4, 4))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 3), nn.Linear(3, 3))


def train(model: nn.Module, optimizers: list[Optimizer], steps: range) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        loss = model(torch.randint(10, (16,), generator=rng)).square().sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = make_model()
    model[4].requires_grad_(False)
    muon, adamw = build_optimizers(model, lr=1e-2)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(model[1].weight), id(model[3].weight)]
    assert {id(p) for p in adamw.param_groups[0]["params"]} == {
        id(p) for p in (model[0].weight, model[1].bias, model[3].bias)
    }
    # Decay is of the hidden layers alone.
    assert [o.param_groups[0]["weight_decay"] for o in build_optimizers(model, lr=1e-2, weight_decay=0.1)] == [0.1, 0]
    set_learning_rate([muon, adamw], 0.5)
    assert [group["lr"] for o in (muon, adamw) for group in o.param_groups] == [0.5, 0.5]


def test_the_update_is_orthogonal_and_scaled_to_its_shape() -> None:
    weight = nn.Parameter(torch.zeros(8, 32))
    weight.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=1.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_its_steps_are_those_of_the_formula() -> None:
    rng = torch.Generator().manual_seed(2)
    start, *gradients = torch.randn(4, 6, 10, generator=rng)
    weight, wanted, momentum = nn.Parameter(start.clone()), start.clone(), torch.zeros(6, 10)
    muon = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for gradient in gradients:
        weight.grad = gradient
        muon.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalise((0.1 * gradient + 0.9 * momentum)[None])[0]
        wanted = (1 - 0.1 * 0.5) * wanted - 0.1 * 0.2 * 10**0.5 * update
    torch.testing.assert_close(weight.detach(), wanted)


def test_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = make_model()
    train(whole, build_optimizers(whole, lr=1e-2, weight_decay=0.1), range(10))

    model = make_model()
    optimizers = build_optimizers(model, lr=1e-2, weight_decay=0.1)
    train(model, optimizers, range(4))
    save_file(state_tensors(optimizers), tmp_path / "optimizer.safetensors")
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    resumed = make_model()
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    optimizers = build_optimizers(resumed, lr=1e-2, weight_decay=0.1)
    load_state_tensors(optimizers, load_file(tmp_path / "optimizer.safetensors"))
    train(resumed, optimizers, range(4, 10))
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert ours.equal(theirs)

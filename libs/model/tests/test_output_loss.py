import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model import output_loss
from latentforge.model.induction_attention import InductionAttention
from latentforge.model.logit_passes import IN_PLACE, UNFUSED, LogitPasses, fused_passes
from latentforge.model.output_loss import OutputLayer, TokenWeights, token_losses
from latentforge.model.sparse_kd import NEVER, Buckets, KdTargets, make_buckets, sparse_losses

N, V, K, W = 70, 40, 5, 9
FIXED = 6

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
both_passes = pytest.mark.parametrize("passes", [IN_PLACE, UNFUSED], ids=["in-place", "fused"])


def make_inputs(v: int = V) -> tuple[list[Tensor], tuple[KdTargets, Tensor], Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    teacher = (3 * torch.randn(N, v, generator=rng)).log_softmax(-1)
    top = teacher.topk(min(K, v))
    counts = torch.arange(N) % (top.indices.shape[1] + 1)
    held = torch.arange(top.indices.shape[1]) < counts[:, None]
    realised = torch.randint(v, (N,), generator=rng)
    rows = KdTargets(
        ids=top.indices,
        logprobs=top.values,
        counts=counts,
        realised_logprobs=teacher.gather(1, realised[:, None])[:, 0],
        tail_mass=1 - torch.where(held, top.values.exp(), 0).sum(1),
        has_row=torch.ones(N, dtype=torch.bool),
    )
    inputs, weight, bias = (torch.randn(shape, generator=rng) for shape in ((N, W), (v, W), (v,)))
    fixed, learned = weight[:, :FIXED].clone(), weight[:, FIXED:].clone().requires_grad_()
    tensors = [inputs.requires_grad_(), learned, bias.requires_grad_(), fixed]
    return tensors, (rows, realised), torch.rand(N, generator=rng), torch.rand(N, generator=rng)


@both_passes
@pytest.mark.parametrize(("v", "at_once"), [(V, 2**20), (V, 32 * V), (K, 2**20)])
def test_values_and_gradients_are_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch, v: int, at_once: int, passes: LogitPasses
) -> None:
    monkeypatch.setattr(output_loss, "_LEAST_TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(output_loss, "_LOGITS_AT_ONCE_CPU", at_once)
    (inputs, learned, bias, fixed), rows, ce_w, kd_w = make_inputs(v)
    layer = OutputLayer(inputs, torch.cat([fixed, learned], 1), bias, FIXED)
    got = token_losses(layer, make_buckets(*rows, v), TokenWeights(ce_w, kd_w), passes)
    logits = inputs @ torch.cat([fixed, learned], 1).T + bias
    ce = F.cross_entropy(logits, rows[1], reduction="none")
    kd = sparse_losses(logits, *rows).kd
    total = (ce_w * ce + kd_w * kd).sum()
    torch.testing.assert_close(got.each.ce, ce, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.each.kd, kd, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.total, total, rtol=1e-5, atol=1e-4)
    assert got.best.equal(logits.argmax(1) == rows[1])
    likeliest = make_buckets(*rows, v)
    best_of_teacher = likeliest.kept_ids.gather(1, likeliest.teacher[:, :-1].argmax(1, keepdim=True))[:, 0]
    assert got.agrees.equal(logits.argmax(1) == best_of_teacher)
    learnt = [inputs, learned, bias]
    for ours, wanted in zip(
        torch.autograd.grad(3 * got.total, learnt), torch.autograd.grad(3 * total, learnt), strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@both_passes
def test_autocast_rounds_products_and_not_their_sums(monkeypatch: pytest.MonkeyPatch, passes: LogitPasses) -> None:
    # So many blocks of rows that their gradients, added up in bfloat16, would come to a stop on the way.
    monkeypatch.setattr(output_loss, "_LEAST_TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(output_loss, "_LOGITS_AT_ONCE_CPU", 32 * V)
    tensors, rows, ce_w, kd_w = make_inputs()
    inputs, learned, bias, fixed = (t.detach() for t in tensors)
    many = [x.repeat(300, *[1] * (x.dim() - 1)) for x in make_buckets(*rows, V)]
    results = []
    for enabled in (False, True):
        leaves = [
            inputs.repeat(300, 1).requires_grad_(),
            learned.clone().requires_grad_(),
            bias.clone().requires_grad_(),
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            layer = OutputLayer(leaves[0], torch.cat([fixed, leaves[1]], 1), leaves[2], FIXED)
            of_many = TokenWeights(ce_w.repeat(300), kd_w.repeat(300))
            got = token_losses(layer, Buckets(*many), of_many, passes)
        results.append([got.total, got.each.ce, got.each.kd, *torch.autograd.grad(got.total, leaves)])
    for exact, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert not rounded.equal(exact)
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


@pytest.mark.parametrize(("at_once", "passes"), [(8, IN_PLACE), (32, IN_PLACE), (256, IN_PLACE), (32, UNFUSED)])
def test_induction_heads_add_to_the_logits_and_have_gradients(
    monkeypatch: pytest.MonkeyPatch, at_once: int, passes: LogitPasses
) -> None:
    monkeypatch.setattr(output_loss, "_PLACES_AT_ONCE_CPU", at_once)
    (inputs, learned, bias, fixed), rows, ce_w, kd_w = make_inputs()
    rng = torch.Generator().manual_seed(3)
    # Two texts of 35 tokens, some of which stand in theirs more than once.
    ids = torch.randint(V // 2, (2, N // 2), generator=rng)
    shapes = ((2, 2, N // 2, 3),) * 3 + ((2,), (2,), (W - FIXED, 6))
    tensors = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
    induction = InductionAttention._make([*tensors, ids, None])
    layer = OutputLayer(inputs, torch.cat([fixed, learned], 1), bias, FIXED, induction)
    got = token_losses(layer, make_buckets(*rows, V), TokenWeights(ce_w, kd_w), passes)
    found = induction.look_up()
    called = torch.stack([F.one_hot(ids[row // (N // 2)], V).float().T @ found.boosts[row] for row in range(N)])
    read = torch.cat([inputs[:, :FIXED], inputs[:, FIXED:] + found.vectors], 1)
    logits = read @ torch.cat([fixed, learned], 1).T + bias + called
    ce = F.cross_entropy(logits, rows[1], reduction="none")
    total = (ce_w * ce + kd_w * sparse_losses(logits, *rows).kd).sum()
    torch.testing.assert_close(got.total, total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.logits(), logits)
    picked = torch.tensor([3, 60, 36])
    torch.testing.assert_close(layer.logits(picked), logits[picked])
    learnt = [inputs, learned, bias, *tensors]
    wanted = torch.autograd.grad(3 * total, learnt)
    for ours, theirs in zip(torch.autograd.grad(3 * got.total, learnt), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("passes", [IN_PLACE, UNFUSED], ids=["in-place", "fused"])
@pytest.mark.parametrize("with_heads", [False, True])
def test_a_weight_of_some_ids_gives_what_a_whole_one_with_zeros_gives(with_heads: bool, passes: LogitPasses) -> None:
    (inputs, learned, bias, fixed), rows, ce_w, kd_w = make_inputs()
    rng = torch.Generator().manual_seed(4)
    some = torch.randperm(V, generator=rng)[:13].sort().values
    weight = torch.cat([fixed, learned.detach()], 1)[some].requires_grad_()
    text_ids = torch.randint(V, (2, N // 2), generator=rng)
    shapes = ((2, 2, N // 2, 3),) * 3 + ((2,), (2,), (W, 6))
    tensors = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes] if with_heads else []
    induction = InductionAttention._make([*tensors, text_ids, None]) if with_heads else None
    tv = torch.rand(N, generator=rng)
    learnt, found = [inputs, bias, weight, *tensors], []
    whole = torch.zeros(V, W).index_copy(0, some, weight)
    layers = OutputLayer(inputs, weight, bias, 0, induction, some), OutputLayer(inputs, whole, bias, 0, induction)
    for layer in layers:
        got = token_losses(layer, make_buckets(*rows, V), TokenWeights(ce_w, kd_w, tv), passes)
        found.append(
            [got.total, *got.each, got.best, got.agrees, layer.logits(), *torch.autograd.grad(got.total, learnt)]
        )
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_heads", [False, True])
def test_what_nobody_wants_is_not_computed_and_changes_nothing(
    with_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_loss, "_LEAST_TOKENS_AT_ONCE", 4)
    monkeypatch.setattr(output_loss, "_LOGITS_AT_ONCE_CPU", V)
    (inputs, learned, bias, fixed), rows, ce_w, kd_w = make_inputs()
    rng = torch.Generator().manual_seed(5)
    shapes = ((2, 2, N // 2, 3),) * 3 + ((2,), (2,), (W - FIXED, 6))
    tensors = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes] if with_heads else []
    text_ids = torch.randint(V, (2, N // 2), generator=rng)
    induction = InductionAttention._make([*tensors, text_ids, None]) if with_heads else None
    wanted = torch.zeros(N, dtype=torch.bool)
    # Of the first text nothing but its middle, with a hole; the second one's last token.
    wanted[11:20], wanted[14], wanted[-1] = True, False, True
    weights = TokenWeights(ce_w * wanted, kd_w * wanted)
    made: list[int] = []
    first_logits = output_loss._first_logits

    def counted(layer: OutputLayer, read: Tensor) -> Tensor:
        made.append(len(read))
        return first_logits(layer, read)

    monkeypatch.setattr(output_loss, "_first_logits", counted)
    learnt, found = [inputs, learned, bias, *tensors], []
    for asked in (None, wanted):
        layer = OutputLayer(inputs, torch.cat([fixed, learned], 1), bias, FIXED, induction)
        got = token_losses(layer, make_buckets(*rows, V), weights, wanted=asked)
        each = [x[wanted] for x in (*got.each, got.best, got.agrees)]
        found.append([got.total, *each, *torch.autograd.grad(got.total, learnt)])
        made.append(0)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert sum(made[: made.index(0)]) == N
    assert sum(made[made.index(0) :]) == (10 if with_heads else N - 11)


@both_passes
def test_extreme_logits_stay_finite(passes: LogitPasses) -> None:
    (inputs, learned, bias, fixed), rows, ce_w, kd_w = make_inputs()
    big = (500 * inputs.detach()).requires_grad_()
    layer = OutputLayer(big, torch.cat([fixed, learned], 1), bias, FIXED)
    got = token_losses(layer, make_buckets(*rows, V), TokenWeights(ce_w, kd_w), passes)
    got.total.backward()
    assert got.total.isfinite()
    for tensor in (big, learned, bias):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_evaluation_gives_the_same_losses() -> None:
    (inputs, learned, bias, fixed), rows, ce_w, kd_w = make_inputs()
    buckets = make_buckets(*rows, V)
    layer = OutputLayer(inputs, torch.cat([fixed, learned], 1), bias, FIXED)
    trained = token_losses(layer, buckets, TokenWeights(ce_w, kd_w))
    with torch.no_grad():
        evaluated = token_losses(layer, buckets, TokenWeights(ce_w, kd_w))
    assert not evaluated.total.requires_grad
    assert evaluated.each.ce.equal(trained.each.ce)
    assert evaluated.each.kd.equal(trained.each.kd)


# Torch warns of its own parts while it compiles.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])])
def test_compiled_passes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    rng = torch.Generator().manual_seed(4)
    logits = (10 * torch.randn(64, 300, generator=rng)).to(torch.bfloat16)
    logits[:, 7] = NEVER
    logits, factors = logits.to(device), torch.randn(64, generator=rng).to(device)
    fused = fused_passes(varying=False)
    top, total = fused.tail(logits)
    gradient = fused.gradient(logits, top, factors, torch.bfloat16)
    wanted_top, wanted_total = UNFUSED.tail(logits)
    assert top.equal(wanted_top)
    torch.testing.assert_close(total, wanted_total)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient, UNFUSED.gradient(logits, top, factors, torch.bfloat16))
    assert not gradient[:, 7].any()

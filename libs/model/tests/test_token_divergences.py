"""Every loss of a token and its gradient, against a slow reference: float64, one row and one token at a time."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model import output_loss
from latentforge.model.induction_attention import InductionAttention
from latentforge.model.output_loss import OutputLayer, TokenWeights, token_losses
from latentforge.model.sparse_kd import KdTargets, make_buckets, sparse_losses

N, V, K, W, FIXED = 84, 40, 5, 9, 4
NAMES = ("ce", "kd", "tv", "reverse_kl", "overlap")
LEAST_TAIL = 1e-7


class Case(NamedTuple):
    """A teacher's distributions, float64 [N, v], rows made of them, the text, and an output layer's tensors."""

    teacher: Tensor
    rows: KdTargets
    realised: Tensor
    leaves: dict[str, Tensor]
    ids: Tensor


def make_case(v: int = V) -> Case:
    """Rows of 0 to K entries, with the realised token among them or not, and every seventh without a tail."""
    rng = torch.Generator().manual_seed(5)
    k, row = min(K, v), torch.arange(N)
    logits = torch.randn(N, v, generator=rng, dtype=torch.float64)
    top = logits.topk(k).indices
    no_tail = row % 7 == 6
    among_top = torch.zeros(N, v, dtype=torch.bool).scatter(1, top, True)
    teacher = logits.masked_fill(no_tail[:, None] & ~among_top, -torch.inf).softmax(-1)
    counts = torch.where(no_tail, k, row % (k + 1))
    realised = torch.where((row % 2 == 0) | no_tail, top[:, 0], torch.randint(v, (N,), generator=rng))
    held = torch.arange(k) < counts[:, None]
    masses = teacher.gather(1, top)
    rows = KdTargets(
        ids=torch.where(held, top, 0),
        logprobs=torch.where(held, masses.log(), 0).float(),
        counts=counts,
        realised_logprobs=teacher.gather(1, realised[:, None])[:, 0].log().float(),
        tail_mass=torch.where(no_tail, 0, 1 - torch.where(held, masses, 0).sum(1)).float(),
        has_row=torch.ones(N, dtype=torch.bool),
    )
    shapes = {"inputs": (N, W), "weight": (v, W - FIXED), "bias": (v,), "fixed": (v, FIXED)}
    of_heads = (2, 2, N // 2, 3)
    shapes |= {"queries": of_heads, "keys": of_heads, "values": of_heads, "nothing": (2,), "gain": (2,)}
    shapes |= {"out": (W - FIXED, 6)}
    leaves = {name: torch.randn(shape, generator=rng) / 2 for name, shape in shapes.items()}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != "fixed")
    # Two texts of N/2 tokens, in which tokens stand more than once.
    return Case(teacher, rows, realised, leaves, torch.randint(max(2, v // 2), (2, N // 2), generator=rng))


def attention_of(leaves: dict[str, Tensor], ids: Tensor) -> InductionAttention:
    return InductionAttention._make([*(leaves[name] for name in InductionAttention._fields[:6]), ids, None])


def slow_logits(case: Case, *, induction: bool) -> Tensor:
    """Float64 [N, v]."""
    leaves = {name: tensor.double() for name, tensor in case.leaves.items()}
    weight = torch.cat([leaves["fixed"], leaves["weight"]], 1)
    logits = leaves["inputs"] @ weight.T + leaves["bias"]
    if not induction:
        return logits
    found = attention_of(leaves, case.ids).look_up()
    one_hot = F.one_hot(case.ids, logits.shape[1]).double()
    boosts = torch.stack([found.boosts[n] @ one_hot[n // (N // 2)] for n in range(N)])
    return logits + found.vectors @ leaves["weight"].T + boosts


def slow_losses(case: Case, logits: Tensor) -> dict[str, Tensor]:
    """Losses [N] by name, over merged tokens; differentiable."""
    student = logits.softmax(-1)
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for n in range(N):
        kept = sorted({*case.rows.ids[n, : case.rows.counts[n]].tolist(), int(case.realised[n])})
        rest = [v for v in range(logits.shape[1]) if v not in kept]
        t = [case.teacher[n, v] for v in kept] + [case.teacher[n, rest].sum()]
        s = [student[n, v] for v in kept] + [student[n, rest].sum()]
        least = [torch.tensor(0.0)] * len(kept) + [torch.tensor(LEAST_TAIL)]
        found["ce"].append(-s[kept.index(int(case.realised[n]))].log())
        found["kd"].append(sum((a * (a.log() - b.log()) for a, b in zip(t, s, strict=True) if a > 0), torch.zeros(())))
        found["tv"].append(torch.stack([(a - b).abs() for a, b in zip(t, s, strict=True)]).sum() / 2)
        found["reverse_kl"].append(
            sum(
                (b * (b.log() - torch.maximum(a, c).log()) for a, b, c in zip(t, s, least, strict=True) if b > 0),
                torch.zeros(()),
            )
        )
        found["overlap"].append(
            sum((torch.minimum(a, b) for a, b in list(zip(t, s, strict=True))[:-1]), torch.zeros(()))
        )
    return {name: torch.stack([value.double() for value in values]) for name, values in found.items()}


@pytest.mark.parametrize("v", [V, K + 1, K])
@pytest.mark.parametrize("induction", [False, True])
@pytest.mark.parametrize("alone", [None, "ce", "kd", "tv", "reverse_kl"])
def test_losses_and_gradients_are_those_of_the_slow_reference(
    monkeypatch: pytest.MonkeyPatch, v: int, induction: bool, alone: str | None
) -> None:
    # Three blocks of tokens, with induction heads two of each text.
    monkeypatch.setattr(output_loss, "_LEAST_TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(output_loss, "_LOGITS_AT_ONCE_CPU", 32 * v)
    case = make_case(v)
    rng = torch.Generator().manual_seed(6)
    weights = {name: torch.rand(N, generator=rng) * (alone in (None, name)) for name in TokenWeights._fields}
    leaves = case.leaves
    layer = OutputLayer(
        leaves["inputs"],
        torch.cat([leaves["fixed"], leaves["weight"]], 1),
        leaves["bias"],
        FIXED,
        attention_of(leaves, case.ids) if induction else None,
    )
    got = token_losses(layer, make_buckets(case.rows, case.realised, v), TokenWeights(**weights))
    wanted = slow_losses(case, slow_logits(case, induction=induction))
    for name in NAMES:
        torch.testing.assert_close(getattr(got.each, name).double(), wanted[name], rtol=1e-6, atol=1e-6, msg=name)
    total = torch.stack([weights[name].double() @ wanted[name] for name in weights]).sum()
    torch.testing.assert_close(got.total.double(), total, rtol=1e-6, atol=1e-6)
    learnt = [leaves[name] for name in ("inputs", "weight", "bias")]
    learnt += attention_of(leaves, case.ids)[:6] if induction else ()
    theirs = torch.autograd.grad(2 * total, learnt)
    for ours, exact in zip(torch.autograd.grad(2 * got.total, learnt), theirs, strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-6, atol=4e-6)


def test_merging_tokens_bounds_the_whole_vocabularys_divergences_and_the_acceptance() -> None:
    case = make_case()
    logits = slow_logits(case, induction=False).detach()
    teacher, student = case.teacher, logits.softmax(-1)
    each = sparse_losses(logits, case.rows, case.realised)
    accepted = torch.minimum(teacher, student).sum(1)
    assert (each.overlap <= accepted + 1e-6).all()
    assert (accepted <= 1 - each.tv + 1e-6).all()
    assert (each.kd <= torch.xlogy(teacher, teacher / student).sum(1) + 1e-6).all()
    has_tail = case.rows.tail_mass > 0
    reverse = (student * (student.log() - teacher.log())).sum(1)
    assert (each.reverse_kl[has_tail] <= reverse[has_tail] + 1e-6).all()
    # Where the teacher has no tail, the bounds meet.
    torch.testing.assert_close(each.overlap[~has_tail].double(), accepted[~has_tail], rtol=0, atol=1e-6)
    torch.testing.assert_close(1 - each.tv[~has_tail].double(), accepted[~has_tail], rtol=0, atol=1e-6)
    assert ((1 - each.tv - each.overlap)[has_tail] > 1e-3).sum() > N // 2


def test_rows_that_hold_every_token_are_exact() -> None:
    case = make_case(K)
    logits = slow_logits(case, induction=False).detach()
    whole = case.rows.counts == K
    teacher, student = case.teacher[whole], logits.softmax(-1)[whole]
    each = sparse_losses(logits, case.rows, case.realised)
    for got, wanted in (
        (each.kd, (teacher * (teacher / student).log()).sum(1)),
        (each.tv, (teacher - student).abs().sum(1) / 2),
        (each.reverse_kl, (student * (student / teacher).log()).sum(1)),
        (each.overlap, torch.minimum(teacher, student).sum(1)),
    ):
        torch.testing.assert_close(got[whole].double(), wanted, rtol=1e-6, atol=1e-6)


def test_extreme_logits_keep_every_loss_and_gradient_finite() -> None:
    case = make_case()
    logits = (300 * slow_logits(case, induction=False).float().detach()).requires_grad_()
    each = sparse_losses(logits, case.rows, case.realised)
    torch.stack(list(each)).sum().backward()
    assert all(x.isfinite().all() for x in each)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()

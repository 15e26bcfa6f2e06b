import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentforge.model.sparse_kd import KdTargets, sparse_losses

V, K = 30, 5


def make_rows(n: int, seed: int, sharpness: float = 3.0, v: int = V, k: int = K) -> tuple[Tensor, KdTargets, Tensor]:
    """A teacher's log probabilities, float64 [n, v], rows made from them with counts 0..k, and realised ids [n]."""
    rng = torch.Generator().manual_seed(seed)
    teacher = (sharpness * torch.randn(n, v, generator=rng, dtype=torch.float64)).log_softmax(-1)
    counts = torch.arange(n) % (k + 1)
    ids = teacher.topk(k).indices
    held = torch.arange(k) < counts[:, None]
    # Half of the realised tokens are among the top ones.
    realised = torch.where(torch.arange(n) % 2 == 0, ids[:, 0], torch.randint(v, (n,), generator=rng))
    logprobs = teacher.gather(1, ids)
    tail = 1 - torch.where(held, logprobs.exp(), 0).sum(1)
    rows = KdTargets(
        ids=torch.where(held, ids, 0),
        logprobs=torch.where(held, logprobs, 0).float(),
        counts=counts,
        realised_logprobs=teacher.gather(1, realised[:, None])[:, 0].float(),
        tail_mass=tail.float(),
        has_row=torch.ones(n, dtype=torch.bool),
    )
    return teacher, rows, realised


def reference(teacher: Tensor, student_logits: Tensor, rows: KdTargets, realised: Tensor) -> Tensor:
    """The KL over buckets, slowly: float64, the full vocabulary, one row at a time."""
    student = student_logits.double().log_softmax(-1)
    losses = []
    for n in range(len(teacher)):
        kept = set(rows.ids[n, : rows.counts[n]].tolist()) | {int(realised[n])}
        rest = [v for v in range(teacher.shape[1]) if v not in kept]
        terms = [teacher[n, v].exp() * (teacher[n, v] - student[n, v]) for v in sorted(kept)]
        if rest:
            t, s = teacher[n, rest].logsumexp(0), student[n, rest].logsumexp(0)
            terms.append(t.exp() * (t - s))
        losses.append(torch.stack(terms).sum())
    return torch.stack(losses)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 8))
def test_matches_the_slow_reference_and_bounds_the_full_kl(seed: int, sharpness: float) -> None:
    teacher, rows, realised = make_rows(12, seed, sharpness)
    logits = 4 * torch.randn(12, V, generator=torch.Generator().manual_seed(seed + 1))
    got = sparse_losses(logits, rows, realised).kd
    torch.testing.assert_close(got.double(), reference(teacher, logits, rows, realised), rtol=1e-4, atol=2e-5)
    full = (teacher.exp() * (teacher - logits.double().log_softmax(-1))).sum(-1)
    assert (got.double() <= full + 1e-4).all()
    assert (got >= -1e-5).all()


def test_gradient_is_that_of_the_reference() -> None:
    teacher, rows, realised = make_rows(12, 1)
    logits = torch.randn(12, V, requires_grad=True)
    (got,) = torch.autograd.grad(sparse_losses(logits, rows, realised).kd.sum(), logits)
    (wanted,) = torch.autograd.grad(reference(teacher, logits, rows, realised).sum(), logits)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_is_zero_when_the_student_is_the_teacher() -> None:
    teacher, rows, realised = make_rows(12, 2)
    logits = (teacher + 5).float().requires_grad_()
    losses = sparse_losses(logits, rows, realised).kd
    assert losses.abs().max() < 1e-5
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-5


def test_entries_behind_the_count_are_ignored() -> None:
    _, rows, realised = make_rows(12, 3)
    logits = torch.randn(12, V)
    behind = torch.arange(K) >= rows.counts[:, None]
    ids, logprobs = torch.where(behind, 7, rows.ids), torch.where(behind, -0.5, rows.logprobs)
    noisy = dataclasses.replace(rows, ids=ids, logprobs=logprobs)
    assert sparse_losses(logits, noisy, realised).kd.equal(sparse_losses(logits, rows, realised).kd)


def test_a_vanishing_tail_gives_finite_losses_and_gradients() -> None:
    _, rows, realised = make_rows(12, 4, sharpness=60.0)
    logits = (200 * torch.randn(12, V)).requires_grad_()
    losses = sparse_losses(logits, rows, realised).kd
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_rows_that_hold_the_whole_vocabulary_have_no_tail() -> None:
    teacher, rows, realised = make_rows(12, 5, v=K, k=K)
    logits = torch.randn(12, K, requires_grad=True)
    losses = sparse_losses(logits, rows, realised).kd
    torch.testing.assert_close(losses.double(), reference(teacher, logits, rows, realised), rtol=1e-4, atol=2e-5)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()

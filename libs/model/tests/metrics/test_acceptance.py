"""Both estimators against the enumeration of every draft, and against speculative sampling itself."""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from latentforge.model.metrics.acceptance import accepted_of_drafts, greedy_accepted, token_acceptance
from latentforge.model.sparse_kd import KdTargets, sparse_losses

V, K = 4, 3
Tables = dict[tuple[int, ...], Tensor]


def conditionals(seed: int, sharpness: float) -> Tables:
    """Distributions of the next token behind every prefix shorter than K, float64 [V]."""
    rng = torch.Generator().manual_seed(seed)
    prefixes = [x for length in range(K) for x in product(range(V), repeat=length)]
    return {x: (sharpness * torch.randn(V, generator=rng, dtype=torch.float64)).softmax(0) for x in prefixes}


def logprobs(tables: Tables, text: tuple[int, ...]) -> Tensor:
    return torch.stack([tables[text[:i]][text[i]].log() for i in range(K)])


def expected(teacher: Tables, student: Tables) -> float:
    """E[accepted] by the process itself: a token is drawn from the student and accepted with min(1, p/q)."""

    def behind(prefix: tuple[int, ...]) -> float:
        if len(prefix) == K:
            return 0.0
        p, q = teacher[prefix], student[prefix]
        return sum(float(q[x] * (p[x] / q[x]).clamp(max=1)) * (1 + behind((*prefix, x))) for x in range(V))

    return behind(())


def along(teacher: Tables, student: Tables, text: tuple[int, ...]) -> float:
    p, q = (torch.stack([tables[text[:i]] for i in range(K)]) for tables in (teacher, student))
    overlap = torch.minimum(p, q).sum(1)[None]
    found = token_acceptance(overlap, 1 - overlap, torch.ones(1, K, dtype=torch.bool), K)
    assert found.low.equal(overlap)
    return float(found.accepted_high.sum())


TEACHER, STUDENT = conditionals(0, 1.5), conditionals(1, 1.0)
TEXTS = list(product(range(V), repeat=K))


def test_drafts_of_the_student_give_the_expectation() -> None:
    total = 0.0
    for text in TEXTS:
        accepted = accepted_of_drafts(logprobs(TEACHER, text), logprobs(STUDENT, text))
        total += float(logprobs(STUDENT, text).sum().exp() * accepted.sum())
    assert total == pytest.approx(expected(TEACHER, STUDENT), rel=1e-12)


def test_an_estimate_along_text_is_exact_where_acceptance_does_not_depend_on_the_prefix() -> None:
    teacher, student = ({x: tables[(0,) * len(x)] for x in tables} for tables in (TEACHER, STUDENT))
    assert {round(along(teacher, student, text), 9) for text in TEXTS} == {round(expected(teacher, student), 9)}
    # Elsewhere it is near, and depends on the text.
    of_teacher = sum(float(logprobs(TEACHER, text).sum().exp()) * along(TEACHER, STUDENT, text) for text in TEXTS)
    assert of_teacher == pytest.approx(expected(TEACHER, STUDENT), rel=0.2)
    assert of_teacher != pytest.approx(expected(TEACHER, STUDENT), rel=1e-3)


def test_speculative_sampling_accepts_as_many() -> None:
    rng = torch.Generator().manual_seed(2)
    lengths = []
    for _ in range(4000):
        prefix: tuple[int, ...] = ()
        while len(prefix) < K:
            p, q = TEACHER[prefix], STUDENT[prefix]
            x = int(torch.multinomial(q, 1, generator=rng))
            if torch.rand((), generator=rng, dtype=torch.float64) >= p[x] / q[x]:
                break
            prefix = (*prefix, x)
        lengths.append(len(prefix))
    mean = torch.tensor(lengths).double().mean()
    error = float(torch.tensor(lengths).double().std()) / len(lengths) ** 0.5
    assert abs(float(mean) - expected(TEACHER, STUDENT)) < 4 * error


def test_a_tail_bounds_acceptance_from_both_sides() -> None:
    rng = torch.Generator().manual_seed(3)
    teacher = (2 * torch.randn(8, 30, generator=rng)).log_softmax(-1)
    logits = 2 * torch.randn(8, 30, generator=rng)
    text = torch.multinomial(teacher.exp(), 1, generator=rng)[:, 0]
    top = teacher.topk(4)
    realised = teacher.gather(1, text[:, None])[:, 0]
    tail, has_row = 1 - top.values.exp().sum(1), torch.ones(8, dtype=torch.bool)
    losses = sparse_losses(
        logits, KdTargets(top.indices, top.values, torch.full((8,), 4), realised, tail, has_row), text
    )
    whole = torch.minimum(teacher.exp(), logits.softmax(-1)).sum(1)
    known = torch.ones(2, 4, dtype=torch.bool)
    found = token_acceptance(losses.overlap.view(2, 4), losses.tv.view(2, 4), known, 4)
    exact = token_acceptance(whole.view(2, 4), 1 - whole.view(2, 4), known, 4)
    for low, middle, high in ((found.low, exact.low, found.high), found[2:3] + exact[2:3] + found[3:4]):
        assert (low <= middle + 1e-6).all()
        assert (middle <= high + 1e-6).all()


def test_chunks_that_lack_a_row_tell_nothing_of_drafts() -> None:
    known = torch.tensor([[False, True, True, True, True, True]])
    half = torch.full((1, 6), 0.5)
    found = token_acceptance(half, half, known, 3)
    assert found.high.isnan().tolist() == [[True, False, False, False, False, False]]
    assert found.accepted_high.isnan().tolist() == [[True, True, True, False, False, False]]
    assert found.accepted_high[0, 3:].tolist() == [0.5, 0.25, 0.125]


def test_along_a_greedy_text_drafts_are_accepted_as_when_they_are_made() -> None:
    rng = torch.Generator().manual_seed(3)
    vocabulary, length, most = 50, 400, 3
    teacher = torch.randint(vocabulary, (vocabulary, vocabulary), generator=rng)
    # It agrees with the teacher behind most pairs of tokens.
    other = torch.randint(vocabulary, (vocabulary, vocabulary), generator=rng)
    drafter = torch.where(torch.rand(vocabulary, vocabulary, generator=rng) < 0.7, teacher, other)

    def written(by: Tensor, text: list[int], num: int) -> list[int]:
        text = list(text)
        for _ in range(num):
            text.append(int(by[text[-2], text[-1]]))
        return text[-num:]

    prompt = [1, 2]
    text = [*prompt, *written(teacher, prompt, length)]
    agrees = torch.tensor([[drafter[a, b] == teacher[a, b] for a, b in pairwise(text)][:-1]])
    known = torch.ones_like(agrees)
    known[:, :1] = False
    place, wanted = 3, []
    while place + most < len(text):
        draft = written(drafter, text[:place], most)
        right = [a == b for a, b in zip(draft, text[place:], strict=False)]
        wanted.append(right.index(False) if False in right else most)
        place += wanted[-1] + 1
    found = greedy_accepted(agrees, known, most).tolist()
    assert found[: len(wanted)] == wanted
    assert 0 <= len(found) - len(wanted) <= most
    assert {0, 1, most} <= set(wanted)


def test_a_draft_that_the_text_cuts_off_says_nothing() -> None:
    def accepted(*hits: int) -> list[int]:
        agrees = torch.tensor([hits]).bool()
        return greedy_accepted(agrees, torch.ones_like(agrees), 4).tolist()

    assert accepted(1, 1, 0, 1, 1) == [2]
    assert accepted(1, 1, 0, 1, 1, 0) == [2, 2]
    assert accepted(1, 1, 1, 1, 0, 1, 1, 1, 1) == [4, 4]
    assert accepted(1, 1) == [2]
    assert accepted() == []

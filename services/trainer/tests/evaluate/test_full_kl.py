import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from latentforge.model.latent_model import LatentModel
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.evaluate import full_kl as module
from latentforge.trainer.evaluate.full_kl import evaluate_full_kl
from latentforge.trainer.evaluate.teacher import EvaluationTeacher

V, K, TOP_K = 260, 4, 4


@pytest.fixture
def teacher(known_teacher: Any, tokenizer: TextTokenizer) -> Iterator[EvaluationTeacher]:
    """One that gives whole distributions."""
    known_teacher.max_top_k = V
    settings = TrainerSettings(gateway_target=f"127.0.0.1:{known_teacher.port}")
    with EvaluationTeacher(settings, tokenizer, V, TOP_K) as found:
        yield found


def slow_kl(model: LatentModel, tokens: torch.Tensor, known_rows: Any) -> list[float]:
    """Of all but the first of a sequence's tokens, id by id."""
    with torch.no_grad():
        ours = model.logits(tokens.view(1, -1, K)).logits.flatten(0, 2).double().log_softmax(-1)
    theirs = known_rows.dense(tokens).double().log_softmax(-1)
    return [
        sum(theirs[i, v].exp().item() * (theirs[i, v] - ours[i, v]).item() for v in range(V))
        for i in range(1, len(tokens))
    ]


@pytest.mark.parametrize("most", [256, 15])
def test_it_is_the_sum_over_the_vocabulary(
    teacher: EvaluationTeacher,
    make_latent: Any,
    packed: PackedData,
    known_rows: Any,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_TOKENS", most)
    model = make_latent()
    sequences = [torch.from_numpy(packed.sequence(i)) for i in range(9)]
    found = evaluate_full_kl(model, sequences, teacher, top_k=TOP_K, seed=0)
    # Eight of nine in even steps leave one out; 15 tokens are three chunks.
    picked = [sequences[i][: 12 if most == 15 else 32] for i in (0, 1, 2, 3, 4, 5, 6, 8)]
    wanted = list(itertools.chain.from_iterable(slow_kl(model, tokens, known_rows) for tokens in picked))
    assert found.full.value == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert found.full.low < found.full.value < found.full.high
    assert 0 < found.bound.value < found.full.value - 0.1


def test_a_teacher_that_leaves_ids_out_gives_no_whole_rows(known_teacher: Any, teacher: EvaluationTeacher) -> None:
    assert teacher.gives_whole_rows
    teacher.about.max_top_k = V - 1
    assert not teacher.gives_whole_rows

import math
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from latentforge.teacher_client.errors import TeacherError
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.brier import PrefixGroup
from latentforge.trainer.evaluate.teacher import EvaluationTeacher

# <|im_end|>, with which the known teacher ends a text, and the end of text.
END, EOS = 3, 0


@pytest.fixture
def teacher(known_teacher: Any, tokenizer: TextTokenizer) -> Iterator[EvaluationTeacher]:
    settings = TrainerSettings(gateway_target=f"127.0.0.1:{known_teacher.port}")
    with EvaluationTeacher(settings, tokenizer, 260, 4) as teacher:
        yield teacher


def test_rows_come_in_the_order_of_the_sequences(
    teacher: EvaluationTeacher, packed: PackedData, known_rows: Any
) -> None:
    # More than are asked for at once, and each of another length.
    sequences = [packed.sequence(i).tolist()[: 31 - i] for i in range(19)]
    done = []
    rows = teacher.rows(sequences, on_sequence=lambda: done.append(1))
    assert len(done) == 19
    for ids, found in zip(sequences, rows, strict=True):
        assert np.array_equal(found.ids, known_rows("").rows(ids, 4).ids)


def test_scores_are_of_what_stands_behind_the_prompt(
    teacher: EvaluationTeacher, packed: PackedData, known_rows: Any
) -> None:
    sequences = [packed.sequence(0).tolist(), packed.sequence(1).tolist()[:8], packed.sequence(2).tolist()[:11]]
    scored = teacher.score([ids[:8] for ids in sequences], [ids[8:] for ids in sequences])
    assert [len(logprobs) for logprobs in scored] == [24, 0, 3]
    for ids, logprobs in zip(sequences, scored, strict=True):
        dense = known_rows.dense(torch.tensor(ids))
        expected = [dense[i, ids[i]].item() for i in range(8, len(ids))]
        assert logprobs.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_continuation_is_without_the_id_that_ended_it(teacher: EvaluationTeacher, known_teacher: Any) -> None:
    prompts = torch.tensor([[10, 20], [30, 40], [50, 60]])
    texts = [text for texts in teacher.continuations(prompts, 12, 1.0, 5, num_samples=6) for text in texts]
    assert {text.ended for text in texts} == {True, False}
    for text in texts:
        assert END not in text.ids
        assert len(text.ids) < 12 if text.ended else len(text.ids) == 12
    assert len(known_teacher.generated) == 3
    again = teacher.continuations(prompts, 12, 1.0, 5, num_samples=6)
    assert [text for texts in again for text in texts] == texts


def test_its_brier_values_are_those_of_its_own_samples_and_probabilities(
    teacher: EvaluationTeacher, packed: PackedData, known_rows: Any
) -> None:
    """One text and one n-gram at a time, from the teacher's closed form."""
    texts = torch.stack([torch.from_numpy(packed.sequence(i))[:13] for i in range(3)])
    group = PrefixGroup(texts[:, :5], texts[:, 5:], torch.arange(3))

    def probability(prefix: list[int], text: list[int]) -> float:
        dense = known_rows.dense(torch.tensor([*prefix, *text]))
        return math.exp(sum(dense[len(prefix) + i, token].item() for i, token in enumerate(text)))

    asked = []
    got = teacher.brier_values(6, on_prompt=lambda: asked.append(1))(group, 7)
    assert len(asked) == 3
    answers = teacher.continuations(group.prefixes, 8, 1.0, 7, num_samples=6)
    assert {text.ended for of in answers for text in of} == {True, False}
    for i, (prefix, target) in enumerate(zip(group.prefixes.tolist(), group.targets.tolist(), strict=True)):
        whole = [[*text.ids, EOS] if text.ended else text.ids for text in answers[i]]
        wanted = [
            2 * probability(prefix, target[:n]) - sum(probability(prefix, text[:n]) for text in whole) / 6
            for n in range(1, 9)
        ]
        assert got[i].tolist() == pytest.approx(wanted, rel=1e-4)


def test_a_dropped_continuation_and_a_refusal_are_errors(teacher: EvaluationTeacher, known_teacher: Any) -> None:
    prompts = torch.tensor([[10, 20]])
    known_teacher.drop = lambda messages, index: "a filter"
    with pytest.raises(TrainerError, match=r"closed-form .* dropped a continuation: a filter"):
        teacher.continuations(prompts, 4, 1.0, 0)
    known_teacher.fail_with = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(TeacherError, match="refused"):
        teacher.rows([[1, 2, 3]])

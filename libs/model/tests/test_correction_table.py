"""A correction of the frequent ids alone, beside one of all ids whose other vectors are zero."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from latentforge.model.config import ChunkDecoderConfig, StudentConfig
from latentforge.model.correction_table import CorrectionTable
from latentforge.model.generation import ChunkGenerator
from latentforge.model.io import load_student, save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams

MakeConfig = Callable[..., StudentConfig]
MakeModel = Callable[..., LatentModel]
V, K, FREQUENT = 64, 4, 5
DECODER = ChunkDecoderConfig(width=16, rank=8, frequent_ids=FREQUENT)
# Most often stand 63, 40, 7 and, of equals the smaller, 0 and 1.
COUNTS = torch.zeros(V, dtype=torch.int64).index_copy(0, torch.tensor([63, 40, 7]), torch.tensor([3, 9, 4]))
IDS = [0, 1, 7, 40, 63]


@pytest.fixture
def table(student_config: MakeConfig) -> CorrectionTable:
    torch.manual_seed(0)
    table = CorrectionTable(student_config(chunk_decoder=DECODER))
    table.set_token_counts(COUNTS)
    return table


def _dense(weight: torch.Tensor) -> torch.Tensor:
    return torch.stack([weight[IDS.index(i)] if i in IDS else torch.zeros(8) for i in range(V)])


def test_the_most_frequent_ids_have_vectors_and_the_others_zeros(table: CorrectionTable) -> None:
    assert table.ids is not None
    assert table.ids.tolist() == IDS
    assert table.weight.shape == (FREQUENT, 8)
    assert table.whole().equal(_dense(table.weight))


def test_what_is_added_when_writing_is_what_the_whole_table_says(table: CorrectionTable) -> None:
    logits, corrections = torch.randn(3, V), torch.randn(3, 8)
    wanted = logits + corrections @ _dense(table.weight).T
    got = table.add_to(logits, corrections)
    assert got is logits
    torch.testing.assert_close(got, wanted)


def test_gradients_are_the_frequent_vectors_of_a_whole_tables(table: CorrectionTable) -> None:
    inputs, coefficients = torch.randn(3, 8), torch.randn(3, V)
    ((inputs @ table.whole().T) * coefficients).sum().backward()
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad, (coefficients.T @ inputs)[IDS])


def test_a_table_of_all_ids_takes_no_counts(student_config: MakeConfig) -> None:
    table = CorrectionTable(student_config())
    table.set_token_counts(COUNTS)
    assert table.ids is None
    assert table.whole() is table.weight


def test_a_student_learns_only_the_frequent_vectors_and_writes_what_it_says_teacher_forced(
    make_model: MakeModel,
) -> None:
    model = make_model(chunk_decoder=DECODER)
    model.student.set_token_counts(COUNTS)
    assert model.student.chunk_decoder is not None
    rare = [i for i in range(V) if i not in IDS]
    tokens = torch.randint(2, V, (2, 3, K))
    with torch.no_grad():
        before = model.logits(tokens).logits
        model.student.chunk_decoder.output.weight += 1
        after = model.logits(tokens).logits
    assert before[..., rare].equal(after[..., rare])
    assert not before[..., IDS].isclose(after[..., IDS]).any()

    got = list(ChunkGenerator(model).generate([5, 6, 7, 8], 12, SamplingParams(temperature=0), V + 1))
    written = [i for chunk in got for i in chunk.token_ids]
    with torch.no_grad():
        logits = model.logits(torch.tensor([5, 6, 7, 8, *written]).view(1, -1, K)).logits[0, 1:].flatten(0, 1)
    logits[:, 1] = -torch.inf
    assert written == logits.argmax(-1).tolist()


def test_the_ids_are_saved_with_the_weights(make_model: MakeModel, tmp_path: Path) -> None:
    student = make_model(chunk_decoder=DECODER).student
    student.set_token_counts(COUNTS)
    save_pretrained(student, tmp_path)
    decoder = load_student(tmp_path).chunk_decoder
    assert decoder is not None
    assert decoder.output.ids is not None
    assert decoder.output.ids.tolist() == IDS


@pytest.mark.parametrize("ids", [[0, 1, 7, 40, V], [-1, 1, 7, 40, 63], [0, 7, 1, 40, 63], [0, 1, 1, 40, 63]])
def test_a_file_with_other_ids_is_refused(make_model: MakeModel, tmp_path: Path, ids: list[int]) -> None:
    student = make_model(chunk_decoder=DECODER).student
    assert student.chunk_decoder is not None
    assert student.chunk_decoder.output.ids is not None
    student.chunk_decoder.output.ids.copy_(torch.tensor(ids))
    save_pretrained(student, tmp_path)
    with pytest.raises(ValueError, match=r"chunk_decoder.output.ids are not ascending ids of the 64 .* damaged"):
        load_student(tmp_path)


def test_more_frequent_ids_than_the_vocabulary_has_are_refused(student_config: MakeConfig) -> None:
    with pytest.raises(ValidationError, match="frequent_ids=65 is more than vocab_size=64; set it to fewer"):
        student_config(chunk_decoder=ChunkDecoderConfig(frequent_ids=V + 1))

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentforge.model.decoding import tables
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.generation import ChunkGenerator, TokenGenerator
from latentforge.model.io import load_student, load_token_level, save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel

AnyModel = LatentModel | TokenLevelModel
MakeAny = Callable[[str], AnyModel]


def written(model: AnyModel) -> list[int]:
    generator = TokenGenerator(model) if isinstance(model, TokenLevelModel) else ChunkGenerator(model)
    return [i for chunk in generator.generate([5, 6, 7], 24, SamplingParams(seed=1), -1) for i in chunk.token_ids]


def table_of(model: AnyModel) -> torch.Tensor:
    if isinstance(model, TokenLevelModel):
        return model.output_table.weight
    assert model.student.chunk_decoder is not None
    return model.student.chunk_decoder.output.weight


@pytest.mark.parametrize("name", ["induction", "token-level"])
def test_a_model_stored_for_decoding_holds_writes_and_saves_the_same(
    make_any: MakeAny, name: str, tmp_path: Path
) -> None:
    model = make_any(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = written(model)
    batch_decoding(model, 1)
    assert table_of(model).stride(0) == 1
    assert written(model) == wanted
    student = model if isinstance(model, TokenLevelModel) else model.student
    save_pretrained(student, tmp_path)
    loaded = load_token_level(tmp_path) if isinstance(student, TokenLevelModel) else load_student(tmp_path)
    for state in (model.state_dict(), loaded.state_dict()):
        for key, value in state.items():
            assert value.equal(before[key if key in before else f"student.{key}"])


def test_small_tables_are_stored_by_column_for_single_texts_only(
    make_any: MakeAny, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slots, exact, cached, by_column in ((4, False, 10**6, False), (4, True, 10**6, True), (4, False, 0, True)):
        monkeypatch.setattr(tables, "_CACHED_BYTES", cached)
        model = make_any("induction")
        batch_decoding(model, slots, exact=exact)
        assert (table_of(model).stride(0) == 1) == by_column
        assert isinstance(model, LatentModel)
        assert (model.output_weight.stride(0) == 1) == (cached == 0)


def test_tables_in_other_formats_are_left_as_they_are(make_any: MakeAny) -> None:
    model = make_any("induction").bfloat16()
    batch_decoding(model, 1)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_generators_leave_a_model_in_training_stored_as_it_is(make_any: MakeAny) -> None:
    model = make_any("induction")
    written(model)
    assert all(parameter.is_contiguous() for parameter in model.parameters())

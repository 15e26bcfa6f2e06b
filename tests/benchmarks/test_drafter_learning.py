from pathlib import Path

import pytest

from benchmarks.drafter.cpp_prompts import cpp_pieces
from benchmarks.drafter.engines import WrittenTexts
from benchmarks.drafter.learning import learnt
from benchmarks.drafter.passes import Pass
from benchmarks.drafter.plan import DrafterPlan


def _group(*given: int) -> WrittenTexts:
    """One text: its prompt's pass, and passes with drafts of 8 that gave so many tokens each."""
    passes = [Pass(0.0, 1.0, 0.1, ((None, 1),)), *(Pass(0.0, 1.0, 0.1, ((8, num),)) for num in given)]
    return WrittenTexts([[3] * (1 + sum(given))], 1.0, passes, [])


def test_learning_is_what_a_pass_gives_after_over_before() -> None:
    written = {"before": [_group(1, 1), _group(2, 2)], "after": [_group(2), _group(4)]}
    found = learnt(written, DrafterPlan())
    assert found.baseline_value == pytest.approx(6 / 4)
    assert found.value == pytest.approx(6 / 2)
    assert found.ratio == pytest.approx(2)
    assert (found.low, found.high) == (2, 2)


@pytest.mark.parametrize("seed", [0, 7])
def test_what_is_asked_about_is_of_other_files_than_what_is_learnt(tmp_path: Path, seed: int) -> None:
    for number in range(900):
        folder = tmp_path / f"d{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}.h").write_text(f"int of_{number} = 1;  // line\n" * 200, encoding="utf-8")
    train, asked = cpp_pieces(tmp_path, seed)
    assert (len(train), len(asked)) == (1200, 96)
    assert not {text.split()[1] for text in train} & {text.split()[1] for text in asked}
    assert cpp_pieces(tmp_path, seed) == (train, asked)


def test_a_folder_with_too_few_headers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gives 0 and 0 pieces; install torch"):
        cpp_pieces(tmp_path)

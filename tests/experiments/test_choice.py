"""The chart to choose by says what is published."""

from pathlib import Path

import pytest

from experiments.choice import CHOICE_CHART, choices, draw_choices
from latentforge.core.results import ResultsFile

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_every_way_stands_where_its_results_put_it() -> None:
    found = choices(RESULTS, Path("models"))
    for ways in found.values():
        by_name = {way.name: way for way in ways}
        assert len(by_name) == len(ways)
        assert (by_name["teacher"].one, by_name["teacher"].many, by_name["teacher"].kl) == (1, 1, 0)
        assert all(way.kl == 0 for way in ways if way.kind in ("drafts", "lookup"))
        assert all(way.kl > 0 for way in ways if way.kind in ("student", "token-level"))
    bench = ResultsFile.read(RESULTS / "drafter" / "bench.json").by_id
    smollm2 = {way.name: way for way in found["SmolLM2-135M-Instruct"]}
    assert smollm2["drafts"].one == bench["speed_1"].ratio
    assert smollm2["suffixes"].many == bench["speed_8_suffix"].ratio
    pace = ResultsFile.read(RESULTS / "worth" / "pace.json").by_id
    gru = next(way for ways in found.values() for way in ways if way.name == "GRU")
    assert gru.many == pytest.approx(pace["pace_gru_16"].ratio, rel=0.1)


@pytest.mark.slow
def test_the_chart_is_drawn(tmp_path: Path) -> None:
    draw_choices(choices(RESULTS, Path("models")), tmp_path / CHOICE_CHART)
    assert (tmp_path / CHOICE_CHART).read_bytes().startswith(b"\x89PNG")

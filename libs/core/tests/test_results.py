import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from latentforge.core.results import Result, ResultsError, ResultsFile


class Measurement(ResultsFile):
    repeats: int


def bench(**values: Any) -> Measurement:
    given = {"name": "bench", "command": "make bench", "device": "cpu", "seed": 3, "repeats": 2, **values}
    return Measurement.model_validate({"results": [Result(id="x", value=1.0, unit="s")], **given})


def test_a_ratio_above_one_is_better_for_us() -> None:
    def ratio(value: float, other: float | None, **more: Any) -> float | None:
        return Result.compared("x", value, "1", baseline="other", baseline_value=other, **more).ratio

    assert ratio(300.0, 100.0) == 3.0
    assert ratio(10.0, 90.0, smaller_is_better=True) == 9.0
    assert ratio(10.0, None) is None
    assert ratio(0.0, 90.0) is ratio(10.0, 0.0) is None


def test_what_is_not_finite_is_not_there() -> None:
    result = Result(id="x", value=math.nan, unit="1", low=-math.inf, high=2.0)
    assert (result.value, result.low, result.high) == (None, None, 2.0)


def test_a_file_is_named_after_its_time_and_says_how_it_was_made(tmp_path: Path) -> None:
    written = bench()
    path = written.write(tmp_path / "results")
    assert re.fullmatch(r"bench_\d{8}_\d{6}\.json", path.name)
    record = json.loads(path.read_text())
    about = {"format_version", "name", "command", "commit", "device", "date", "seed", "results"}
    assert record.keys() == about | {"repeats"}
    assert (record["format_version"], record["seed"]) == (2, 3)
    assert record["results"][0].keys() == set(Result.model_fields)
    assert path.stem.removeprefix("bench_") == re.sub("[-:]", "", record["date"][:19]).replace("T", "_")


def test_a_file_is_read_as_it_was_written_with_its_sections_or_without(tmp_path: Path) -> None:
    path = bench().write(tmp_path)
    assert Measurement.read(path).repeats == 2
    assert ResultsFile.read(path).by_id["x"] == Result(id="x", value=1.0, unit="s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format_version is 1"),
        ({"format_version": None}, "format_version is missing"),
        ({"date": None}, "date is missing"),
        ({"results": None}, "results is missing"),
        ({"repeats": "many"}, "repeats is 'many'"),
        ({"results": [{"id": "x", "value": "fast", "unit": "s"}]}, "results.0.value is 'fast'"),
    ],
)
def test_another_version_or_kind_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = bench().write(tmp_path)
    record = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    with pytest.raises(ResultsError, match=f"{path} is not a Measurement of this version: {message}"):
        Measurement.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"none\.json cannot be read: No such file"):
        ResultsFile.read(tmp_path / "none.json")

import json
from pathlib import Path

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.identity import claim


def test_another_recipe_is_named_with_both_values_and_how_to_start_anew(tmp_path: Path) -> None:
    claim(tmp_path / "s", {"optim": {"lr": 0.1, "steps": 5}}, "--fresh or --run NAME")
    claim(tmp_path / "s", {"optim": {"steps": 5, "lr": 0.1}}, "--fresh or --run NAME")
    with pytest.raises(TrainerError, match=r"optim\.lr = 0\.1, now it is 0\.2; .*--fresh or --run NAME"):
        claim(tmp_path / "s", {"optim": {"lr": 0.2, "steps": 5}}, "--fresh or --run NAME")
    assert json.loads((tmp_path / "s" / "identity.json").read_text()) == {"optim": {"lr": 0.1, "steps": 5}}


def test_a_field_that_only_one_of_both_has_is_named(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "data": {"bos": None}}, "--fresh")
    with pytest.raises(TrainerError, match=r"share = None, now it is 0\.5"):
        claim(tmp_path, {"seed": 0, "share": 0.5}, "--fresh")

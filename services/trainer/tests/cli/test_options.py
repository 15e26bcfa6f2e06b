from pathlib import Path
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from latentforge.trainer.cli.main import app as trainer
from latentforge.trainer.cli.options import MemoryOptions, RunOptions, TeacherOptions, begun_from, with_groups
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings


def test_every_field_of_a_group_is_an_option_of_its_own() -> None:
    got: list[Any] = []
    app = typer.Typer()

    @app.command()
    @with_groups
    def command(
        options: RunOptions, steps: Annotated[int, typer.Option("--steps")], teacher: TeacherOptions, k: int = 8
    ) -> None:
        """What it does."""
        got.extend([options, steps, teacher, k])

    result = CliRunner().invoke(
        app, ["--steps", "3", "--run", "a", "--set", "x=1", "--set", "y=2", "--targets", "text"]
    )
    assert result.exit_code == 0, result.output
    assert got == [RunOptions(run="a", sets=["x=1", "y=2"]), 3, TeacherOptions(targets="text"), 8]
    assert got[2].overrides == {
        "teacher.targets": "text",
        "teacher.targets_from": None,
        "teacher.generate.prompts": None,
    }
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "What it does." in said
    assert all(option in said for option in ("--recipe", "--held-out", "--fresh", "--gateway", "--prompts", "--k"))
    assert "--options" not in said


def test_the_seeds_names_save_memory_with_either_kind_of_dash() -> None:
    got: list[MemoryOptions] = []
    app = typer.Typer()

    @app.command()
    @with_groups
    def command(memory: MemoryOptions) -> None:
        got.append(memory)

    for dash in ("_", "-"):
        names = [
            f"--{name.replace('_', dash)}" for name in ("use_activation_checkpointing", "gradient_accumulation_steps")
        ]
        result = CliRunner().invoke(app, [*names, "4", "--bf16"])
        assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, ["--no-bf16"]).exit_code == 0
    asked = {
        "student.optim.gradient_accumulation_steps": 4,
        "student.activation_checkpointing": True,
        "precision": "bfloat16",
    }
    nothing = dict.fromkeys(asked)
    assert [options.overrides for options in got] == [asked, asked, nothing | {"precision": "float32"}]


def test_a_run_does_not_start_from_a_checkpoint_of_its_own(environment: dict[str, str], monkeypatch: Any) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own = str(Path(environment["CHECKPOINTS_DIR"]) / "tiny" / "step-00000012")
    result = CliRunner().invoke(trainer, ["run", "--recipe", "tiny", "--init-from", own])
    assert result.exit_code == 2
    assert "is of this run itself" in result.output


def test_a_checkpoint_to_start_from_takes_the_place_of_what_the_recipe_starts_from(tmp_path: Path) -> None:
    recipes = TrainerSettings().recipes_dir
    student = load_recipe("drafter", recipes, begun_from(tmp_path)).student
    assert (student.init_checkpoint, student.init_from) == (tmp_path, None)
    assert begun_from(None) == {}

"""What commands share: options, from them a run's context, and how errors become words and exit codes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="The teacher's tokenizer folder.", show_default="TOKENIZER_PATH")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe's name (RECIPES_DIR) or a path to a TOML file.")]
RunOption = Annotated[str | None, typer.Option("--run", help="The run's name.", show_default="the recipe's name")]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Forget what this run has made, and start anew; a whole collection of generated text that fits is kept.",
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        "--targets",
        help="score: its rows on the data; generate: its own text; auto: what it can; text: no teacher.  ",
        show_default="the recipe's",
    ),
]
PromptsOption = Annotated[
    int | None,
    typer.Option("--prompts", help="Prompts that the teacher continues, for generate.", show_default="the recipe's"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Override a recipe's value, e.g. student.optim.lr=0.002; repeatable."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="A JSONL file or a packed folder.", show_default="the standard library of the running Python"
    ),
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option("--held-out", help="A JSONL file or a packed folder for validation.", show_default="5 % of the data"),
]
LengthOption = Annotated[
    int | None,
    typer.Option("--sequence-length", help="Tokens per sequence, a multiple of K.", show_default="the recipe's"),
]
KOption = Annotated[int | None, typer.Option("--k", help="Tokens per chunk, K.", show_default="the recipe's")]
GatewayOption = Annotated[
    str | None, typer.Option("--gateway", help="host:port of the teacher-gateway.", show_default="GATEWAY_TARGET")
]


def run_context(
    recipe: str,
    run: str | None,
    overrides: dict[str, Any],
    sets: list[str] | None,
    *,
    stop: Callable[[], bool],
    **env: Any,
) -> Any:
    from latentforge.core.settings import load_settings
    from latentforge.trainer.config.recipe import load_recipe, parse_override
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.run.context import RunContext
    from latentforge.trainer.run.status import Status
    from latentforge.trainer.run.tokenizer import teachers_tokenizer

    settings = load_settings(TrainerSettings, **env)
    loaded = load_recipe(recipe, settings.recipes_dir, {**overrides, **dict(parse_override(s) for s in sets or [])})
    tokenizer = teachers_tokenizer(settings, eos_id=loaded.data.eos_id, pad_id=loaded.data.pad_id)
    tokenizer.check_ids()
    name = run or loaded.name
    return RunContext(name, loaded, settings, tokenizer, Status(name), stop)


def sequence_length_of(chosen: int | None, data: Path | None) -> int | None:
    """Packed data brings its own sequence length."""
    if chosen is not None or data is None or not data.is_dir():
        return chosen
    from latentforge.text.packed import PackedData

    with user_errors():
        return PackedData(data).meta.sequence_length


def forget(*places: Path) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Says what a user can put right in plain words, and ends with the right exit code."""
    from latentforge.core.command_line import DONE, errors_reported
    from latentforge.core.logs import configure_logging
    from latentforge.teacher_client.errors import TeacherError
    from latentforge.trainer.errors import RecipeError
    from latentforge.trainer.run.interrupt import Interrupted

    configure_logging("trainer")
    try:
        with errors_reported(ValueError, TeacherError, OSError, usage=(RecipeError,)):
            yield
    except Interrupted:
        typer.echo("stopped as asked; everything is saved. Run the same command to go on.", err=True)
        raise typer.Exit(DONE) from None

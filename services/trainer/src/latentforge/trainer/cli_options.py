"""What the commands that train share: options, and from them a run's context."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from latentforge.trainer.cli_common import user_errors

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
    from latentforge.trainer.recipes import load_recipe, parse_override
    from latentforge.trainer.run_context import RunContext
    from latentforge.trainer.settings import TrainerSettings
    from latentforge.trainer.status import Status
    from latentforge.trainer.tokenizer import TextTokenizer

    settings = load_settings(TrainerSettings, **env)
    loaded = load_recipe(recipe, settings.recipes_dir, {**overrides, **dict(parse_override(s) for s in sets or [])})
    tokenizer = TextTokenizer(settings.tokenizer_path, eos_id=loaded.data.eos_id, pad_id=loaded.data.pad_id)
    name = run or loaded.name
    return RunContext(name, loaded, settings, tokenizer, Status(name), stop)


def sequence_length_of(chosen: int | None, data: Path | None) -> int | None:
    """Packed data brings its own sequence length."""
    if chosen is not None or data is None or not data.is_dir():
        return chosen
    from latentforge.trainer.packing import PackedData

    with user_errors():
        return PackedData(data).meta.sequence_length


def forget(*places: Path) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

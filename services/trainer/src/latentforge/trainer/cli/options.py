"""What commands share: options, from them a run's context, and how errors become words and exit codes."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentforge.core.files import remove

if TYPE_CHECKING:
    from latentforge.trainer.config.recipe import Recipe
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.run.context import RunContext
    from latentforge.trainer.run.ranks import Ranks

# Seconds: a pin that a server writes takes less.
_LEFT_AFTER = 60.0

TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="The teacher's tokenizer folder.", show_default="TOKENIZER_PATH")
]
EosOption = Annotated[
    int | None,
    typer.Option("--eos-id", min=0, help="Id that ends a text.", show_default="the recipe's, else the tokenizer's"),
]
PadOption = Annotated[
    int | None,
    typer.Option(
        "--pad-id",
        min=0,
        help="Id that fills what is no text; no text has it, and it is not the end-of-text's.",
        show_default="the recipe's, else the tokenizer's",
    ),
]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Whether every sequence begins with the tokenizer's bos.",
        show_default="the recipe's, else as the tokenizer does",
    ),
]
TextColumnOption = Annotated[
    str | None,
    typer.Option("--text-column", help="What holds a document's text.", show_default="text or messages"),
]
SkipBadOption = Annotated[
    bool | None, typer.Option("--skip-bad", help="Leave lines that are no documents out, and count them.")
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe's name (RECIPES_DIR) or a path to a TOML file.")]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        "--run-name",
        help="The run's name; torchrun takes --run for its own.",
        show_default="the recipe's name",
    ),
]
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
        help="score: its rows on the data; generate: text that it writes; auto: what it can; text: no teacher.  ",
        show_default="the recipe's",
    ),
]
TargetsFromOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--targets-from",
        help="A folder of kept rows (`trainer score`) to learn from in place of a gateway; repeatable.",
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
TrackerOption = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        help="trackio or wandb (Weights & Biases): an experiment tracker that the run is logged to, or none.",
        show_default="TRAINER_TRACKER",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="A file, folder or glob of JSONL (.gz, .zst) or Parquet, hub:OWNER/NAME, or a packed folder.",
        show_default="the standard library of the running Python",
    ),
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option("--held-out", help="The same for validation.", show_default="5 % of the data"),
]
LengthOption = Annotated[
    int | None,
    typer.Option("--sequence-length", help="Tokens per sequence, a multiple of K.", show_default="the recipe's"),
]
KOption = Annotated[int | None, typer.Option("--k", help="Tokens per chunk, K.", show_default="the recipe's")]
AccumulationOption = Annotated[
    int | None,
    typer.Option(
        "--gradient_accumulation_steps",
        "--gradient-accumulation-steps",
        help="Parts that a step's batch is computed in, one after another.",
        show_default="the recipe's",
    ),
]
Bf16Option = Annotated[
    bool | None,
    typer.Option("--bf16/--no-bf16", help="Compute the losses in bfloat16.", show_default="the recipe's"),
]
CheckpointingOption = Annotated[
    bool | None,
    typer.Option(
        "--use_activation_checkpointing/--no_activation_checkpointing",
        "--use-activation-checkpointing/--no-activation-checkpointing",
        help="Make the backbone's activations anew in the backward pass.",
        show_default="the recipe's",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what it takes: parameters, memory, speed, time, disk. Trains, asks and leaves nothing."
    ),
]
InitFromOption = Annotated[
    Path | None,
    typer.Option(
        "--init-from",
        metavar="CHECKPOINT",
        help="Start from the autoencoder and the student of a published checkpoint's folder.",
        show_default="the recipe's",
    ),
]
GatewayOption = Annotated[
    str | None, typer.Option("--gateway", help="host:port of the teacher-gateway.", show_default="GATEWAY_TARGET")
]


@dataclass(frozen=True)
class RunOptions:
    """Which run, with which recipe and on which data: options of everything that trains."""

    recipe: RecipeOption = "demo"
    data: DataOption = None
    held_out: HeldOutOption = None
    run: RunOption = None
    tokenizer: TokenizerOption = None
    eos_id: EosOption = None
    pad_id: PadOption = None
    bos: BosOption = None
    text_column: TextColumnOption = None
    skip_bad: SkipBadOption = None
    sets: SetOption = None
    fresh: FreshOption = False
    tracker: TrackerOption = None


@dataclass(frozen=True)
class TeacherOptions:
    """Where a teacher is and what it gives: options of everything that learns from one."""

    gateway: GatewayOption = None
    targets: TargetsOption = None
    targets_from: TargetsFromOption = None
    prompts: PromptsOption = None

    @property
    def overrides(self) -> dict[str, Any]:
        return {
            "teacher.targets": self.targets,
            "teacher.targets_from": self.targets_from or None,
            "teacher.generate.prompts": self.prompts,
        }


@dataclass(frozen=True)
class MemoryOptions:
    """What a student's step takes: time for memory."""

    gradient_accumulation_steps: AccumulationOption = None
    activation_checkpointing: CheckpointingOption = None
    bf16: Bf16Option = None

    @property
    def overrides(self) -> dict[str, Any]:
        return {
            "student.optim.gradient_accumulation_steps": self.gradient_accumulation_steps,
            "student.activation_checkpointing": self.activation_checkpointing,
            "precision": precision(self.bf16),
        }


def precision(bf16: bool | None) -> str | None:
    """The recipe's word for what ``--bf16`` asks for."""
    return None if bf16 is None else "bfloat16" if bf16 else "float32"


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take groups of options: every field of a parameter that is a dataclass is an option of its own.

    typer reads a command's signature, so it is given one without the groups.
    """
    signature = inspect.signature(command)
    kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    parameters = []
    for name, parameter in signature.parameters.items():
        own = inspect.signature(groups[name]).parameters.values() if name in groups else [parameter]
        parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    flat.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def run_context(
    options: RunOptions,
    overrides: dict[str, Any],
    stop: Callable[[], bool],
    gateway: str | None = None,
    ranks: "Ranks | None" = None,
) -> "RunContext":
    """The run that the options name, its recipe with ``overrides`` by dotted name.

    Raises:
        SettingsError, RecipeError, TextError: a setting, the recipe or the tokenizer cannot be used.
    """
    from rich.console import Console

    from latentforge.trainer.config.pretrained import check_vocabulary
    from latentforge.trainer.errors import RecipeError
    from latentforge.trainer.run.context import RunContext
    from latentforge.trainer.run.ranks import ALONE
    from latentforge.trainer.run.status import Status
    from latentforge.trainer.run.tokenizer import teachers_tokenizer

    settings, recipe = recipe_of(options, overrides, gateway)
    name = options.run or recipe.name
    started_from = recipe.student.init_checkpoint
    if started_from is not None and started_from.resolve().parent == (settings.checkpoints_dir / name).resolve():
        raise RecipeError(
            f"student.init_checkpoint={started_from} is of this run itself, which goes on by itself; choose another "
            "--run NAME for what starts from it"
        )
    data = recipe.data
    tokenizer = teachers_tokenizer(settings, eos_id=data.eos_id, pad_id=data.pad_id, bos=data.bos)
    tokenizer.check_ids()
    check_vocabulary(recipe.student, recipe.autoencoder, tokenizer, recipe.vocab_size or tokenizer.vocab_size)
    name = options.run or recipe.name
    ranks = ranks or ALONE
    console = Console(stderr=True, quiet=not ranks.is_main)
    return RunContext(name, recipe, settings, tokenizer, Status(name), stop, console, ranks)


def recipe_of(
    options: RunOptions, overrides: Mapping[str, Any], gateway: str | None = None
) -> "tuple[TrainerSettings, Recipe]":
    """The settings, and the recipe that the options name with ``overrides`` by dotted name; raises as above."""
    from latentforge.core.settings import load_settings
    from latentforge.trainer.config.recipe import load_recipe, parse_override
    from latentforge.trainer.config.settings import TrainerSettings

    settings = load_settings(
        TrainerSettings,
        gateway_target=gateway,
        tokenizer_path=options.tokenizer,
        trainer_tracker=options.tracker,
    )
    overrides = {
        "data.eos_id": options.eos_id,
        "data.pad_id": options.pad_id,
        "data.bos": options.bos,
        "data.text_column": options.text_column,
        "data.skip_bad": options.skip_bad,
        **overrides,
    }
    overrides |= dict(parse_override(text) for text in options.sets or [])
    recipe = load_recipe(options.recipe, settings.recipes_dir, overrides)
    return settings, recipe


@contextmanager
def tracked_context(context: "RunContext") -> "Iterator[RunContext]":
    """The same context with the chosen tracker among its sinks.

    Raises:
        TrainerError: the tracker is not installed, or cannot begin.
    """
    from latentforge.trainer.run.sinks.tracker import tracked

    if not context.ranks.is_main:
        yield context
        return
    settings, config = context.settings, context.recipe.model_dump(mode="json")
    with tracked(
        settings.trainer_tracker, settings.trainer_tracker_project, context.name, context.folder, config
    ) as sinks:
        yield replace(context, sinks=(*context.sinks, *sinks))


def hold(context: "RunContext", until: ExitStack) -> None:
    """Keeps other trainers from the run until ``until`` is closed, and sweeps what one that died was writing.

    Raises:
        TrainerError: another trainer has it.
    """
    from latentforge.core.files import sweep
    from latentforge.trainer.run.lock import RunLock

    if not context.ranks.is_main:
        return
    lock = RunLock(context.folder)
    until.callback(lock.release)
    folders = [context.folder, *(p for p in context.folder.rglob("*") if p.is_dir())]
    for folder in (*folders, context.settings.checkpoints_dir / context.name):
        # Nobody else writes here now, whatever machine the dead one was on.
        sweep(folder, left_after=_LEFT_AFTER)


def sequence_length_of(chosen: int | None, data: Path | None) -> int | None:
    """Packed data brings its own sequence length."""
    from latentforge.text.packed import META, PackedData

    if chosen is not None or data is None or not (data / META).is_file():
        return chosen
    return PackedData(data).meta.sequence_length


def forget(ranks: "Ranks", *places: Path) -> None:
    """Removes files and folders, where they are, once for all processes."""
    with ranks.main_first():
        for place in places if ranks.is_main else ():
            remove(place)


@contextmanager
def user_errors() -> Iterator[ExitStack]:
    """Says what a user can put right in plain words, and ends with the right exit code; gives what is closed then."""
    from latentforge.core.command_line import DONE, errors_reported
    from latentforge.core.logs import configure_logging
    from latentforge.teacher_client.errors import TeacherError
    from latentforge.trainer.errors import RecipeError
    from latentforge.trainer.run.interrupt import Interrupted

    configure_logging("trainer")
    try:
        with errors_reported(ValueError, TeacherError, OSError, usage=(RecipeError,)), ExitStack() as stack:
            yield stack
    except Interrupted:
        typer.echo("stopped as asked; everything is saved. Run the same command to resume.", err=True)
        raise typer.Exit(DONE) from None

"""The options that commands share, alone and in groups."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

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
StepsOption = Annotated[int | None, typer.Option("--steps", help="Optimizer steps.", show_default="the recipe's")]
BatchOption = Annotated[
    int | None, typer.Option("--batch-size", help="Sequences per step.", show_default="the recipe's")
]
KdOption = Annotated[float | None, typer.Option("--kd-w", help="Weight of the KD loss.", show_default="the recipe's")]
CeOption = Annotated[
    float | None, typer.Option("--ce-w", help="Weight of the cross-entropy.", show_default="the recipe's")
]
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
        help="Start from the autoencoder and the student of a published checkpoint's folder, and not from what the "
        "recipe's student starts from.",
        show_default="the recipe's",
    ),
]
GatewayOption = Annotated[
    str | None, typer.Option("--gateway", help="host:port of the teacher-gateway.", show_default="GATEWAY_TARGET")
]


def begun_from(checkpoint: Path | None) -> dict[str, Any]:
    """What --init-from overrides: a student starts from one thing."""
    return {} if checkpoint is None else {"student.init_checkpoint": checkpoint, "student.init_from": ""}


@dataclass(frozen=True)
class ReadingOptions:
    """Which run, with which recipe, and how data is read."""

    recipe: RecipeOption = "demo"
    held_out: HeldOutOption = None
    run: RunOption = None
    tokenizer: TokenizerOption = None
    eos_id: EosOption = None
    pad_id: PadOption = None
    bos: BosOption = None
    text_column: TextColumnOption = None
    skip_bad: SkipBadOption = None
    sequence_length: LengthOption = None
    sets: SetOption = None


@dataclass(frozen=True)
class RunOptions(ReadingOptions):
    """Which run, and on which data: options of everything that trains."""

    data: DataOption = None
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


@dataclass(frozen=True)
class LearningOptions:
    """How long a student learns, from how much at once, and what counts."""

    steps: StepsOption = None
    batch_size: BatchOption = None
    kd_w: KdOption = None
    ce_w: CeOption = None

    @property
    def overrides(self) -> dict[str, Any]:
        return {
            "student.optim.steps": self.steps,
            "student.optim.batch_size": self.batch_size,
            "student.weights.kd": self.kd_w,
            "student.weights.ce": self.ce_w,
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

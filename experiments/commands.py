"""The trainer's own commands for data, autoencoders, students and evaluations; nothing is trained any other way."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.plan import AutoencoderPlan, Model, Vocabulary
from experiments.scales import Scale
from latentforge.trainer.config.objectives import DEFAULT_OBJECTIVE

RECIPE = Path(__file__).with_name("recipe.toml")
_TEACHER = Path("models") / "stdlib-teacher"


@dataclass(frozen=True)
class CommandJob:
    """One command and what it leaves behind.

    Attributes:
        name: of its log, and what people are told.
        command: program and arguments.
        done: exists when it need not run again.
        tokens: how much it has to do, for the estimate of what is left.
    """

    name: str
    command: list[str]
    done: Path
    tokens: int = 0


@dataclass(frozen=True)
class Places:
    """Where an experiment keeps its things, below one folder."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def tokenizer(self, vocabulary: Vocabulary) -> Path:
        return _TEACHER if vocabulary == "demo" else self.root / "tokenizer-large"

    def text(self, name: str) -> Path:
        return self.root / "text" / f"{name}.jsonl"

    def packed(self, vocabulary: Vocabulary, name: str) -> Path:
        return self.root / "packed" / f"{vocabulary}-{name}"

    def trained(self, model: Model) -> Path:
        """What ``trainer evaluate`` is given."""
        if model.kind == "token-level":
            return self.runs / model.run / "token-level"
        return self.checkpoints / model.run

    def evaluated(self, model: Model, held_out: str) -> Path:
        """The folder of one model's evaluation on one held-out text."""
        return self.root / "evaluations" / held_out / model.run

    def autoencoder(self, plan: AutoencoderPlan) -> Path:
        return self.runs / plan.run / "autoencoder"


def text_jobs(places: Places, scale: Scale) -> list[CommandJob]:
    """Training and held-out text; the packages also make the large vocabulary, and nothing else is trained on them."""
    return [
        _job("text-stdlib", places.text("stdlib-train"), "data", "stdlib", "--out"),
        _job("text-stdlib-held-out", places.text("stdlib"), "data", "stdlib", "--split", "held-out", "--out"),
        _job("text-packages-held-out", places.text("packages"), "data", "packages", "--split", "held-out", "--out"),
        _job(
            "text-packages",
            places.text("packages-train"),
            *("data", "packages", "--max-mb", str(scale.package_megabytes), "--out"),
        ),
    ]


def tokenizer_job(places: Places, scale: Scale) -> CommandJob:
    text = places.text("vocabulary")
    command = ["tokenizer", "--data", str(text), "--vocab-size", str(scale.large_vocabulary), "--out"]
    return _job("tokenizer-large", places.tokenizer("large"), *command)


def packing_jobs(places: Places, scale: Scale, vocabulary: Vocabulary) -> list[CommandJob]:
    names = {"train": scale.training_text} | {name: name for name in scale.texts}
    return [
        _job(
            f"pack-{vocabulary}-{name}",
            places.packed(vocabulary, name),
            *("pack", str(places.text(text)), "--tokenizer", str(places.tokenizer(vocabulary))),
            *("--split", "train" if name == "train" else "held-out"),
            *("--sequence-length", str(scale.sequence_length), "--k", "8", "--out"),
        )
        for name, text in names.items()
    ]


def autoencoder_steps(scale: Scale, plan: AutoencoderPlan) -> int:
    return plan.times * scale.autoencoder_steps if plan.steps is None else plan.steps


def autoencoder_values(scale: Scale, plan: AutoencoderPlan) -> dict[str, Any]:
    """What an autoencoder has besides the recipe, by dotted name."""
    return {
        "chunk_size": plan.k,
        "autoencoder.optim.steps": autoencoder_steps(scale, plan),
        "autoencoder.model.latent_size": plan.d,
        "autoencoder.model.hidden_size": plan.width,
        "autoencoder.model.chunk_hidden_size": max(128, plan.d, 32 * plan.k),
        **({} if plan.token_dropout is None else {"autoencoder.model.token_dropout": plan.token_dropout}),
        **({} if plan.text_tokens is None else {"autoencoder.text_tokens": plan.text_tokens}),
        **({"autoencoder.model.equal_codes": True} if plan.equal_codes else {}),
        **({"seed": plan.seed} if plan.seed else {}),
    }


def autoencoder_job(places: Places, scale: Scale, plan: AutoencoderPlan) -> CommandJob:
    values = autoencoder_values(scale, plan)
    command = _training("autoencoder", places, plan.vocabulary, plan.run, values)
    tokens = autoencoder_steps(scale, plan) * 256 * plan.k
    return CommandJob(f"train {plan.run}", command, places.autoencoder(plan) / "evaluation.json", tokens)


def student_values(scale: Scale, model: Model) -> dict[str, Any]:
    """What a student of either kind has besides the recipe, its objective and its autoencoder, by dotted name."""
    return {
        "chunk_size": max(model.k, 2),
        "seed": model.seed,
        "student.optim.steps": max(1, model.tokens // (scale.batch_size * scale.sequence_length)),
        # The recipe has 1.
        **({} if scale.batch_size == 1 else {"student.optim.batch_size": scale.batch_size}),
        "student.optim.lr": scale.learning_rate,
        "student.publish_every": model.tokens,
        **({} if scale.has_teacher(model.vocabulary) else {"teacher.targets": "text"}),
        **({} if model.induction else {"student.model.induction.context": 0}),
        **model.size.values(),
        **model.changes,
    }


def objective_of(model: Model) -> str:
    """What a latent student learns from: the large vocabulary has no teacher."""
    return model.objective or (DEFAULT_OBJECTIVE if model.vocabulary == "demo" else "chunk-ce")


def student_job(places: Places, scale: Scale, model: Model) -> CommandJob:
    values = student_values(scale, model)
    if model.backbone_of:
        values["student.init_from"] = places.runs / model.backbone_of / "token-level"
        values["student.init_parts"] = '["layers"]'
    command = _training(model.kind, places, model.vocabulary, model.run, values)
    if model.kind == "student":
        command += ["--ae-checkpoint", str(places.autoencoder(model.autoencoder_plan))]
        command += ["--objective", objective_of(model)]
    elif not scale.has_teacher(model.vocabulary):
        # As chunk-ce has it.
        command += ["--ce-w", "1", "--kd-w", "0"]
    return CommandJob(f"train {model.run}", command, places.runs / model.run / f"{model.kind}.json", model.tokens)


def evaluation_job(places: Places, scale: Scale, model: Model, held_out: str) -> CommandJob:
    out = places.evaluated(model, held_out)
    values = dict(scale.evaluation)
    if not scale.has_teacher(model.vocabulary):
        # Half of the time, and after so few tokens every interval began at 0.
        values["--brier-positions"] = 0
    if held_out != "stdlib" or not model.writes:
        # What it writes is looked at once; on other text only its likelihood.
        values |= {"--brier-positions": 0, "--prompts": 0}
    options = [part for name, value in values.items() for part in (name, str(value))]
    command = ["evaluate", str(places.trained(model)), str(places.packed(model.vocabulary, held_out)), *options]
    command += ["--tokenizer", str(places.tokenizer(model.vocabulary)), "--out", str(out)]
    if not scale.has_teacher(model.vocabulary):
        # The teacher has the demo's vocabulary: it can only judge what is written.
        is_judged = held_out == "stdlib" and model.vocabulary == "large"
        command += ["--teacher-tokenizer", str(_TEACHER)] if is_judged else ["--no-teacher"]
    return CommandJob(f"evaluate {model.run} on {held_out}", [_trainer(), *command], out)


def _training(what: str, places: Places, vocabulary: Vocabulary, run: str, values: Mapping[str, Any]) -> list[str]:
    command = [_trainer(), "train", what, "--recipe", str(RECIPE), "--run", run]
    command += [
        "--data",
        str(places.packed(vocabulary, "train")),
        "--held-out",
        str(places.packed(vocabulary, "stdlib")),
    ]
    command += ["--tokenizer", str(places.tokenizer(vocabulary))]
    for name, value in values.items():
        # As TOML has it.
        text = str(value).lower() if isinstance(value, bool) else value
        command += ["--set", f"{name}={text}"]
    return command


def _job(name: str, out: Path, *command: str) -> CommandJob:
    return CommandJob(name, [_trainer(), *command, str(out)], out)


def _trainer() -> str:
    return str(Path(sys.executable).with_name("trainer"))

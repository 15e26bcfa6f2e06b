"""What a start from a pretrained model is worth: nats/token at the same tokens."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.trainer.bench import BenchError, TrainerBench
from benchmarks.trainer.english import write_docstrings
from latentforge.core.results import Result
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.losses import StudentBatch, loss_of
from latentforge.text.held_out import Split
from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.ranks import ALONE
from latentforge.trainer.run.status import Status
from latentforge.trainer.targets.text import TextTargets
from latentforge.trainer.training.learners import Learner, latent_learner, token_level_learner
from latentforge.trainer.training.optimisation import Optimisation
from latentforge.trainer.training.parallel import ParallelModel
from latentforge.trainer.training.step_losses import student_losses
from latentforge.trainer.training.validation import evaluate_student, to_device

MODEL = Path("models/cache/smollm2")
_RECIPE = "smollm2"
_LENGTH, _BATCH, _STEPS = 256, 2, 60
# Steps behind which the held-out text is looked at, besides the first and the last one.
_POINTS = (5, 10, 20, 40)
_HELD_OUT_SEQUENCES = 16
_SCRATCH: dict[str, Any] = {"student.init_from": ""}
#: With its layers too, what the recipe's comment changes: they are frozen until the rest fits them and then slow, as
#: are the outputs that read them.
LAYERS: dict[str, Any] = {
    "student.init_parts": ["layers", "inputs", "outputs"],
    "student.model": {
        "embed_size": 64,
        "chunk_decoder": {"width": 128, "rank": 64, "window": 1},
        "logit_features": {"kind": "linear", "width": 128},
    },
    "student.optim.groups": {
        "layers": {"rate": 0.05, "optimizer": "adamw", "frozen_steps": 20},
        "outputs": {"rate": 0.1},
    },
}


@dataclass(frozen=True)
class _Start:
    """A student before its first step, and what it learns and is measured on."""

    name: str
    run: RunContext
    source: TextTargets
    learner: Learner
    held_out: Sequence[StudentBatch]

    def point(self, step: int) -> dict[str, float]:
        """Tokens learnt by that step, and nats/token of the held-out text."""
        model = self.learner.model
        ce = evaluate_student(model, self.held_out, self.run.recipe.seed, self.run.device)["ce"]
        model.train()
        return {"tokens": self.source.num_tokens(step), "ce": ce}


def pretrained(bench: TrainerBench) -> Sequence[Result]:
    """Nats/token that a student of K = 4 (recipe smollm2) saves by starting from SmolLM2-135M-Instruct: the better of
    its two starts, token tables or tables and layers, beside the recipe's student from scratch. CE alone, one seed, the
    same tokens in the same order: the standard library's docstrings, tested on those of its held-out files.
    pretrained_layers is what the start with the 30 layers saves; pretrained_token_level the loss of SmolLM2 itself on
    that text, as a token-level student before its first step.
    """
    if not (MODEL / "model.safetensors").is_file():
        raise BenchError(f"{MODEL} is missing; make smollm2 makes it")
    recipe = load_recipe(_RECIPE, TrainerSettings().recipes_dir)
    tokenizer = TextTokenizer(MODEL, eos_id=recipe.data.eos_id, pad_id=recipe.data.pad_id)
    curves = {
        name: _curve(bench, _start(bench, tokenizer, name, changes))
        for name, changes in (("scratch", _SCRATCH), ("tables", {}), ("layers", LAYERS))
    }
    original = _start(bench, tokenizer, "token_level", LAYERS, is_token_level=True)
    curves["token_level"] = [original.point(0)]
    bench.measured["pretrained"] = {"curves": curves}
    last = {name: curve[-1]["ce"] for name, curve in curves.items()}
    saved = {name: last["scratch"] - last[name] for name in ("tables", "layers")}
    best = max(saved, key=lambda name: saved[name])
    said = ", ".join(f"{name} {ce:.3f}" for name, ce in last.items())
    tokens = int(curves[best][-1]["tokens"])
    bench.notes.append(f"pretrained: after {tokens:,} tokens {said} nats/token; the value is that of {best}")
    return [
        Result(id="pretrained", value=saved[best], unit="nats/token"),
        Result(id="pretrained_layers", value=saved["layers"], unit="nats/token"),
        Result(id="pretrained_token_level", value=last["token_level"], unit="nats/token"),
    ]


def _curve(bench: TrainerBench, start: _Start) -> list[dict[str, float]]:
    """Points from before the first step to behind the last."""
    run, model = start.run, start.learner.model
    steps = run.recipe.student.optim.steps
    optimisation = Optimisation(model, run.recipe.student.optim)
    parallel = ParallelModel(model, loss_of, ALONE, "ddp", run.device)
    batches = start.source.training_batches(range(steps), model, with_rows=False)
    curve = [start.point(0)]
    for step, batch in enumerate(batches):
        losses = student_losses(run.recipe, parallel, start.learner.weights, to_device(batch, run.device), step)
        optimisation.step(step, losses)
        if step + 1 in (*_POINTS, steps):
            curve.append(start.point(step + 1))
            bench.report.begin(
                f"pretrained: {start.name}, step {step + 1} of {steps}, {curve[-1]['ce']:.3f} nats/token"
            )
    bench.report.figure(f"pretrained: {start.name}, {curve[-1]['ce']:.3f} nats/token")
    return curve


def _start(
    bench: TrainerBench,
    tokenizer: TextTokenizer,
    name: str,
    changes: Mapping[str, Any],
    *,
    is_token_level: bool = False,
) -> _Start:
    settings = TrainerSettings(runs_dir=bench.scratch / "runs", checkpoints_dir=bench.scratch / "checkpoints")
    recipe = load_recipe(_RECIPE, settings.recipes_dir, {**_budget(bench), **changes})
    run = RunContext(name, recipe, settings, tokenizer, Status(name), console=Console(file=io.StringIO()))
    source = TextTargets(run, _data(bench, run, "train"), _data(bench, run, "held-out"))
    counts = torch.from_numpy(source.token_counts)
    if is_token_level:
        learner = token_level_learner(run, counts)
    else:
        torch.manual_seed(recipe.seed)
        # Logit features of a linear map and a loss without latents: the autoencoder takes no part.
        autoencoder = Autoencoder(recipe.autoencoder_config(tokenizer.vocab_size, tokenizer.pad_id))
        learner = latent_learner(run, autoencoder, counts)
    return _Start(name, run, source, learner, source.held_out_batches())


def _budget(bench: TrainerBench) -> dict[str, Any]:
    quick = bench.quick
    return {
        "device": str(bench.device),
        "seed": bench.seed,
        "teacher.targets": "text",
        "student.weights.kd": 0.0,
        "data.sequence_length": 32 if quick else _LENGTH,
        "student.validation_sequences": 1 if quick else _HELD_OUT_SEQUENCES,
        "student.optim.batch_size": _BATCH,
        "student.optim.steps": 2 if quick else _STEPS,
    }


def _data(bench: TrainerBench, run: RunContext, split: Split) -> PackedData:
    out = bench.scratch / f"docstrings-{split}"
    if not out.is_dir():
        bench.report.begin(f"pretrained: packing the {split} docstrings")
        text, recipe = bench.scratch / f"{split}.jsonl", run.recipe
        write_docstrings(text, split, most_files=20 if bench.quick else None)
        sizes = {"sequence_length": recipe.data.sequence_length, "chunk_size": recipe.chunk_size}
        pack_jsonl(text, out, run.tokenizer, **sizes, split=split)
    return PackedData(out)

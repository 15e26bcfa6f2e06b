"""A process that trains as the trainer does, some steps at a time: python step_worker.py JOB.

JOB is a JSON file of :class:`~benchmarks.trainer.workers.StepJob`. For each line with a number on stdin it makes so
many steps and prints a line: wall and CPU seconds, and the loss of each. It imports nothing of the benchmarks, and the
trainer by whichever name its checkout has it, so that it runs an earlier commit's too.
"""

import importlib
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# What is needed of the trainer, and where; the second names are those of commit c66e1e7.
_NAMES = {
    "load_recipe": ("latentforge.trainer.config.recipe", "latentforge.trainer.recipes"),
    "Optimisation": ("latentforge.trainer.training.optimisation", "latentforge.trainer.optimisation"),
    "autocast": ("latentforge.trainer.run.device", "latentforge.trainer.optimisation"),
    "step_generator": ("latentforge.trainer.data.sequence_order", "latentforge.trainer.order"),
    "Autoencoder": ("latentforge.model.autoencoder",),
    "LatentModel": ("latentforge.model.latent_model",),
    "Student": ("latentforge.model.student",),
    "TokenLevelModel": ("latentforge.model.token_level",),
    "KdTargets": ("latentforge.model.losses",),
    "ObjectiveWeights": ("latentforge.model.losses",),
    "StudentBatch": ("latentforge.model.losses",),
    "loss_of": ("latentforge.model.losses",),
}


def _named(name: str) -> Any:
    for module in _NAMES[name]:
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(f"none of {', '.join(_NAMES[name])} is there")


def _model(job: dict[str, Any], recipe: Any, counts: torch.Tensor) -> Any:
    """The model as the trainer makes it before the first step; only the autoencoder is not trained."""
    vocab_size, pad_id, eos_id = job["vocab_size"], job["pad_id"], job["eos_id"]
    torch.manual_seed(recipe.seed)
    autoencoder = _named("Autoencoder")(recipe.autoencoder_config(vocab_size, pad_id))
    torch.manual_seed(recipe.seed)
    if job["stage"] == "token-level":
        model = _named("TokenLevelModel")(recipe.token_level_config(vocab_size, pad_id, eos_id))
        model.set_token_counts(counts)
        return model
    student = _named("Student")(recipe.student_config(pad_id, eos_id, autoencoder.config))
    student.set_token_counts(counts)
    return _named("LatentModel")(autoencoder, student)


def _batches(path: Path, device: torch.device) -> list[Any]:
    tensors = {name: value.to(device) for name, value in load_file(path).items()}
    tokens = tensors.pop("tokens")
    batches = []
    for i, part in enumerate(tokens):
        rows = _named("KdTargets")(**{name: value[i] for name, value in tensors.items()})
        batches.append(_named("StudentBatch")(part, torch.ones_like(part, dtype=torch.bool), rows))
    return batches


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    recipe = _named("load_recipe")(job["recipe"], Path(job["recipes_dir"]), job["overrides"])
    batches = _batches(Path(job["batches"]), device)
    counts = torch.cat([batch.tokens.flatten() for batch in batches]).bincount(minlength=job["vocab_size"]).cpu()
    model = _model(job, recipe, counts).to(device).train()
    weights = recipe.student.weights.model_dump()
    if job["stage"] == "token-level":
        weights = {"ce": weights["ce"], "kd": weights["kd"], "mse": 0.0}
    objective = _named("ObjectiveWeights")(**weights)
    optimisation = _named("Optimisation")(model, recipe.student.optim)
    # It takes the losses of a batch's parts; at commit c66e1e7 it took the batch's.
    in_parts = "losses" in inspect.signature(optimisation.step).parameters

    def take_step(step: int, total: torch.Tensor) -> dict[str, float]:
        terms = {"loss": total}
        values: dict[str, float] = (
            optimisation.step(step, [(total, terms)]) if in_parts else optimisation.step(step, total, terms)
        )
        return values

    loss_of, autocast, generator = _named("loss_of"), _named("autocast"), _named("step_generator")
    step = 0
    print(json.dumps({"model": sys.modules["latentforge.model.losses"].__file__}), flush=True)  # noqa: T201
    for line in sys.stdin:
        losses = []
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            with autocast(recipe, device):
                batch = batches[step % len(batches)]
                loss = loss_of(model, batch, objective, generator(recipe.seed, step, device))
            losses.append(take_step(step, loss.total)["loss"])
            step += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        told = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "losses": losses}
        print(json.dumps(told), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

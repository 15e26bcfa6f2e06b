"""What every stage of a run is given."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.run.device import device_of, use_tf32
from latentforge.trainer.run.events import Sink
from latentforge.trainer.run.ranks import ALONE, Ranks
from latentforge.trainer.run.status import Status

# Change when something is looked at or saved, or what memory a step takes; what comes out they change by rounding at
# most.
_NO_IDENTITY = {
    "save_every",
    "validate_every",
    "keep_states",
    "keep_checkpoints",
    "activation_checkpointing",
    "samples",
    "sample_prompts",
    "sample_tokens",
}
_NO_IDENTITY_OF_OPTIM = {"gradient_accumulation_steps"}
# Decide whether data is refused, not what it is.
_NO_DATA_IDENTITY = {"skip_bad"}


@dataclass(frozen=True)
class RunContext:
    """One run: its recipe and where its things are.

    Attributes:
        name: of the run.
        recipe: what its result depends on.
        settings: what the environment decides.
        tokenizer: the teacher's.
        status: kept up to date.
        stop: says whether the run was asked to stop.
        console: where progress goes.
        ranks: the processes that train it together.
        sinks: what is told of progress besides (see StageProgress).
    """

    name: str
    recipe: Recipe
    settings: TrainerSettings
    tokenizer: TextTokenizer
    status: Status
    stop: Callable[[], bool] = lambda: False
    console: Console = field(default_factory=lambda: Console(stderr=True))
    ranks: Ranks = ALONE
    sinks: tuple[Sink, ...] = ()

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(self.settings.trainer_cuda_memory_fraction)
        use_tf32(self.recipe, self.device)

    @property
    def folder(self) -> Path:
        return self.settings.runs_dir / self.name

    @property
    def progress_folder(self) -> Path:
        """Where progress is written: the run's folder, or where nobody reads it for all processes but the first."""
        return self.ranks.scratch or self.folder

    @property
    def device(self) -> torch.device:
        return device_of(self.recipe)

    @property
    def vocab_size(self) -> int:
        return self.recipe.vocab_size or self.tokenizer.vocab_size

    def identity(self, stage: str) -> dict[str, Any]:
        """What of the recipe a stage's result depends on."""
        recipe = self.recipe.model_dump(mode="json", include={"seed", "chunk_size", "precision", "data", stage})
        recipe[stage] = {k: v for k, v in recipe[stage].items() if k not in _NO_IDENTITY}
        optim = recipe[stage]["optim"]
        recipe[stage]["optim"] = {k: v for k, v in optim.items() if k not in _NO_IDENTITY_OF_OPTIM}
        recipe["data"] = {k: v for k, v in recipe["data"].items() if k not in _NO_DATA_IDENTITY}
        # Runs that were begun before there was a choice did as those that choose so now.
        if not recipe["data"]["mask_documents"]:
            del recipe["data"]["mask_documents"]
        # What is frozen is in no optimizer: states of before that was so number its parameters otherwise.
        frozen = sorted(name for name, group in optim["groups"].items() if group["rate"] == 0)
        return recipe | {"vocab_size": self.vocab_size} | ({"frozen": frozen} if frozen else {})

    def say(self, line: str) -> None:
        """Writes one line for whoever started the run."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def use_threads(self, *, beside_gateway: bool) -> None:
        """Sets torch's threads as chosen, else to all cores, less one while the gateway needs it."""
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(self.settings.trainer_threads or max(1, cores - beside_gateway))

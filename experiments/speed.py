"""Decode speed of many models in one process, taken in turns, so that a slow minute hurts all of them alike."""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from experiments.operations import student_flops
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.batch_generation import generate_batch
from latentforge.model.decoding.tables import store_for_decoding
from latentforge.model.generation import ChunkGenerator, TokenGenerator
from latentforge.model.io import load_autoencoder, load_student, load_token_level
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.model.token_level import TokenLevelModel

AnyModel = LatentModel | TokenLevelModel

_PROMPT_TOKENS = 64
_AT_ONCE = 16
# No token has it, so that every request writes all its tokens.
_NEVER = -1


@dataclass(frozen=True)
class Speed:
    """Tokens per second, round by round.

    Attributes:
        one: one request at a time.
        many: 16 requests that step together, all their tokens.
        training_flops: floating-point operations per token that it learns, without those of its autoencoder.
        parameters: of everything that is needed to write.
    """

    one: tuple[float, ...]
    many: tuple[float, ...]
    training_flops: float
    parameters: int

    @property
    def one_request(self) -> float:
        """The median of ``one``."""
        return statistics.median(self.one)

    @property
    def many_at_once(self) -> float:
        """The median of ``many``."""
        return statistics.median(self.many)


def load_model(folder: Path) -> AnyModel:
    """A run's checkpoints folder (the newest counts), or a token-level student's."""
    places = list_checkpoints(folder)
    if not places:
        return load_token_level(folder)
    return LatentModel(load_autoencoder(places[-1] / "autoencoder"), load_student(places[-1] / "student"))


def measure_speed(
    models: Mapping[str, AnyModel],
    backbones: Mapping[str, str],
    *,
    new_tokens: int,
    repeats: int,
    seed: int,
    console: Console,
) -> dict[str, Speed]:
    """Times all models on one CPU thread, at T = 1, after prompts of 64 random tokens, the prompt's own time included.

    Args:
        models: by name; their tables are stored anew, as each way of writing reads them best.
        backbones: of the models; those of one backbone are timed right after each other, since it is their ratio that
            people ask for.
        new_tokens: per request.
        repeats: rounds that count; one more comes first. Requests that step together come before single ones.
        seed: of orders, prompts and samples.
        console: for progress.
    """
    torch.set_num_threads(1)
    flops = {name: student_flops(model) for name, model in models.items()}
    shuffle = random.Random(seed)

    def rounds(pace: Callable[[AnyModel, int, int], float], what: str) -> dict[str, tuple[float, ...]]:
        paces: dict[str, list[float]] = {name: [] for name in models}
        for repeat in range(repeats + 1):
            turns = neighbours(backbones, shuffle)
            title = f"{what} {repeat}/{repeats}"
            for name in track(turns, title, console=console, disable=not console.is_terminal):
                value = pace(models[name], new_tokens, seed + repeat)
                if repeat:
                    paces[name].append(value)
        return {name: tuple(values) for name, values in paces.items()}

    many = rounds(_many, "16 at once")
    for model in models.values():
        store_for_decoding(model, one_by_one=True)
    one = rounds(_one, "one request")
    return {name: Speed(one[name], many[name], flops[name], num_parameters(model)) for name, model in models.items()}


def num_parameters(model: AnyModel) -> int:
    """Of everything that writing reads: no encoder, and of a student that needs no latent no head."""
    if not isinstance(model, LatentModel):
        return sum(p.numel() for p in model.parameters())
    student, autoencoder = model.student, model.autoencoder

    def of(part: torch.nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    own = of(student) if model.writes_from_latents else of(student) - of(student.head)
    decoder = of(autoencoder.decoder) if model.writes_from_latents else 0
    reads_table = student.config.logit_features.kind in ("autoencoder", "embeddings")
    return own + decoder + (of(autoencoder.embedding) if reads_table else 0)


def neighbours(groups: Mapping[str, str], shuffle: random.Random) -> list[str]:
    """The keys in random order, except that those of one group stand side by side."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name, group in groups.items():
        members[group].append(name)
    order = list(members.values())
    for names in order:
        shuffle.shuffle(names)
    shuffle.shuffle(order)
    return [name for names in order for name in names]


def _one(model: AnyModel, new_tokens: int, seed: int) -> float:
    generator: Any = ChunkGenerator(model) if isinstance(model, LatentModel) else TokenGenerator(model)
    prompt = _prompts(model, 1, seed)[0].tolist()
    started = time.perf_counter()
    chunks = generator.generate(prompt, new_tokens, SamplingParams(seed=seed), eos_id=_NEVER)
    written = sum(len(chunk.token_ids) for chunk in chunks)
    assert written == new_tokens
    return written / (time.perf_counter() - started)


def _many(model: AnyModel, new_tokens: int, seed: int) -> float:
    prompts = _prompts(model, _AT_ONCE, seed)
    started = time.perf_counter()
    generate_batch(model, prompts, new_tokens, SamplingParams(seed=seed), stop_at_eos=False)
    return _AT_ONCE * new_tokens / (time.perf_counter() - started)


def _prompts(model: AnyModel, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, model.vocab_size, (count, _PROMPT_TOKENS), generator=generator)

"""What a recipe takes before it takes it: parameters, memory, speed, time and disk of each stage, from one batch.

Nothing is written and no teacher is asked: ids and the teacher's rows are random, which changes no size. What the
machine's device cannot hold, or a device that is not there, is estimated: the step is gone through with tensors that
have sizes and no content, and all that it holds at once is counted.
"""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch, loss_of
from latentforge.model.optim import Muon, build_optimizers
from latentforge.model.sparse_kd import KdTargets
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.config.sections import OptimRecipe
from latentforge.trainer.run.ranks import ALONE
from latentforge.trainer.training.compiling import compile_layers
from latentforge.trainer.training.estimates.peak_memory import PeakMemory
from latentforge.trainer.training.groups import ParameterGroups
from latentforge.trainer.training.models import (
    TokenIds,
    loss_weights,
    new_autoencoder,
    new_student,
    new_token_level,
)
from latentforge.trainer.training.optimisation import MicroLoss, Optimisation
from latentforge.trainer.training.parallel import ParallelModel, own_weights
from latentforge.trainer.training.step_losses import autoencoder_losses, student_losses

StageName = Literal["autoencoder", "student", "token-level"]
_TIMED_STEPS = 2


class TokenizerIds(NamedTuple):
    """Ids of a tokenizer that may not be here."""

    vocab_size: int
    pad_id: int
    eos_id: int


@dataclass(frozen=True)
class StageNeeds:
    """What a stage of a recipe takes.

    Attributes:
        stage: its name.
        parameters: by part of what is trained, the frozen autoencoder's among them.
        trainable: of those, how many are trained.
        steps, tokens_a_step, parts: of the recipe; parts are the micro-batches of a step.
        memory: estimated bytes by what holds them.
        operations: multiplications and additions of a step's matrix products, forward and backward.
        measured_peak: bytes: the process's resident set on a CPU, the tensors on CUDA; None where no step was made.
        step_seconds: of one step, teacher and data left out; None where no step was made.
        why_not: why no step was made.
        state_bytes, checkpoint_bytes: of one saved state and of one checkpoint.
    """

    stage: StageName
    parameters: dict[str, int]
    trainable: int
    steps: int
    tokens_a_step: int
    parts: int
    memory: dict[str, int]
    operations: int
    measured_peak: int | None
    step_seconds: float | None
    why_not: str
    state_bytes: int
    checkpoint_bytes: int


def stage_needs(recipe: Recipe, stage: StageName, ids: TokenIds, device: torch.device | None) -> StageNeeds:
    """Builds a stage's model and goes through a step; ``device`` None makes an estimate alone."""
    optim = _optim(recipe, stage)
    memory, operations, model = _estimated(recipe, stage, ids, optim)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state_bytes, checkpoint_bytes = saved_bytes(recipe, stage, ids)
    peak, seconds, why_not = None, None, "there is no such device here"
    if device is not None:
        needed, free = sum(memory.values()), _free_bytes(device)
        why_not = f"it needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        if needed < free:
            peak, seconds = _measured(recipe, stage, ids, optim, device)
    tokens = optim.batch_size * (recipe.chunk_size if stage == "autoencoder" else recipe.data.sequence_length)
    return StageNeeds(
        stage=stage,
        parameters=_by_part(model),
        trainable=trainable,
        steps=optim.steps,
        tokens_a_step=tokens,
        parts=optim.gradient_accumulation_steps,
        memory=memory,
        operations=operations,
        measured_peak=peak,
        step_seconds=seconds,
        why_not=why_not if seconds is None else "",
        state_bytes=state_bytes,
        checkpoint_bytes=checkpoint_bytes,
    )


def _estimated(
    recipe: Recipe, stage: StageName, ids: TokenIds, optim: OptimRecipe
) -> tuple[dict[str, int], int, nn.Module]:
    """Bytes by holder, and operations of a step; the model has no content."""
    with _without_content(), PeakMemory() as memory:
        model = build(recipe, stage, ids, torch.device("cpu"))
        weights = memory.held
        losses = _losses(recipe, stage, ids, model, torch.device("cpu"))
        parts = losses(0)
        counter = FlopCounterMode(display=False)
        with counter:
            next(parts)[0].backward()
        # With gradients there from the first part the second one holds the most.
        if (second := next(parts, None)) is not None:
            second[0].backward()
        del second
        gradients = sum(p.numel() * 4 for p in model.parameters() if p.grad is not None)
        kept = _optimizer_bytes(model, optim)
    found = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": kept,
        "activations": max(0, memory.peak - weights - gradients),
    }
    if _ema(recipe, stage) is not None:
        found["averages"] = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    if stage != "autoencoder" and recipe.device.startswith("cuda"):
        # There the fused loss takes more logits at once than here: in float32, their product and gradient in bfloat16.
        found["logits"] = 8 * 2**27
    return found, counter.get_total_flops() * optim.gradient_accumulation_steps, model


def _optimizer_bytes(model: nn.Module, optim: OptimRecipe) -> int:
    """Muon keeps one number for each of its weights, AdamW two."""
    optimizers = build_optimizers(model, optim.lr)
    ParameterGroups(model, optimizers, optim)
    return sum(
        p.numel() * (4 if isinstance(optimizer, Muon) else 8)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    )


def saved_bytes(
    recipe: Recipe, stage: StageName, ids: TokenIds, autoencoder: AutoencoderConfig | None = None
) -> tuple[int, int]:
    """Bytes of one saved state of a stage, and of one checkpoint; no step is gone through.

    ``autoencoder`` is the student's, where it is there already; None takes the recipe's.
    """
    with _without_content():
        model = build(recipe, stage, ids, torch.device("cpu"), autoencoder)
        state = 4 * sum(value.numel() for value in own_weights(model).values())
        if _ema(recipe, stage) is not None:
            state += 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        return state + _optimizer_bytes(model, _optim(recipe, stage)), 4 * sum(p.numel() for p in model.parameters())


def operations_of(recipe: Recipe, stage: StageName, ids: TokenIds) -> int:
    """Multiplications and additions of the matrix products of a stage's step, forward and backward."""
    with _without_content():
        losses = _losses(recipe, stage, ids, build(recipe, stage, ids, torch.device("cpu")), torch.device("cpu"))
        counter = FlopCounterMode(display=False)
        with counter:
            next(losses(0))[0].backward()
    return counter.get_total_flops() * _optim(recipe, stage).gradient_accumulation_steps


@contextmanager
def _without_content() -> Iterator[None]:
    """Tensors that are made meanwhile have sizes alone, and draw no random numbers."""
    # On a CPU autocast has no fused norm for its two formats; that is slow, and nothing is computed here.
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield


def _measured(
    recipe: Recipe, stage: StageName, ids: TokenIds, optim: OptimRecipe, device: torch.device
) -> tuple[int, float]:
    """Peak bytes and seconds of a step, after one that warms up."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # The peak of the process becomes what it holds now: an earlier stage's is none of this one's (man 5 proc).
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    torch.manual_seed(recipe.seed)
    model = build(recipe, stage, ids, device)
    if recipe.student.compile and isinstance(model, LatentModel | TokenLevelModel):
        compile_layers(model, device, varying=False)
    losses = _losses(recipe, stage, ids, model, device)
    optimisation = Optimisation(model, optim, ema=_ema(recipe, stage))
    optimisation.step(0, losses(0))
    started = time.perf_counter()
    for step in range(1, 1 + _TIMED_STEPS):
        # Numbers come back, so the device has done all of it.
        optimisation.step(step, losses(step))
    seconds = (time.perf_counter() - started) / _TIMED_STEPS
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), seconds
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1]), seconds


def build(
    recipe: Recipe,
    stage: StageName,
    ids: TokenIds,
    device: torch.device,
    autoencoder: AutoencoderConfig | None = None,
) -> nn.Module:
    """A stage's model before its first step, in training mode; ``autoencoder`` as for :func:`saved_bytes`."""
    with device:
        if stage == "token-level":
            return new_token_level(recipe, ids).train()
        own = new_autoencoder(recipe, ids) if autoencoder is None else Autoencoder(autoencoder)
        if stage == "autoencoder":
            return own.train()
        return LatentModel(own, new_student(recipe, ids, own.config)).train()


def _losses(
    recipe: Recipe, stage: StageName, ids: TokenIds, model: nn.Module, device: torch.device
) -> Callable[[int], Iterator[MicroLoss]]:
    """The losses of a random batch's parts, as a function of the step."""
    vocab_size = recipe.vocab_size or ids.vocab_size
    if isinstance(model, Autoencoder):
        chunks = torch.randint(vocab_size, (recipe.autoencoder.optim.batch_size, recipe.chunk_size), device=device)
        parallel = ParallelModel(model, Autoencoder.loss, ALONE, "ddp", device)
        return lambda step: autoencoder_losses(recipe, parallel, chunks, step)
    weights = loss_weights(recipe, token_level=stage == "token-level")
    batch = random_batch(recipe, vocab_size, device)
    parallel = ParallelModel(model, loss_of, ALONE, "ddp", device)
    return lambda step: student_losses(recipe, parallel, weights, batch, step)


def random_batch(recipe: Recipe, vocab_size: int, device: torch.device) -> StudentBatch:
    """Sequences of random ids with rows of random, different ids; of the recipe's batch and length."""
    shape, k = (recipe.student.optim.batch_size, recipe.data.sequence_length), recipe.teacher.top_k
    tokens = torch.randint(vocab_size, shape, device=device)
    valid = torch.ones(shape, dtype=torch.bool, device=device)
    if not any(loss_weights(recipe).of_rows.values()):
        return StudentBatch(tokens, valid)
    ids = (tokens[..., None] + torch.arange(k, device=device)) % vocab_size
    # Half of the mass on the entries, half behind them.
    logprobs = torch.full((*shape, k), 0.5 / k, device=device).log()
    half = torch.full(shape, 0.5, device=device)
    return StudentBatch(
        tokens, valid, KdTargets(ids, logprobs, torch.full(shape, k, device=device), half.log(), half, valid)
    )


def _optim(recipe: Recipe, stage: StageName) -> OptimRecipe:
    return recipe.autoencoder.optim if stage == "autoencoder" else recipe.student.optim


def _ema(recipe: Recipe, stage: StageName) -> float | None:
    return None if stage == "autoencoder" else recipe.student.ema


def _by_part(model: nn.Module) -> dict[str, int]:
    whole = model.student if isinstance(model, LatentModel) else model
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in whole.named_children()
        if any(True for _ in part.parameters())
    }
    own = sum(p.numel() for p in whole.parameters(recurse=False))
    if isinstance(model, LatentModel):
        parts["autoencoder (frozen)"] = sum(p.numel() for p in model.autoencoder.parameters())
    return parts | ({"biases, start": own} if own else {})


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

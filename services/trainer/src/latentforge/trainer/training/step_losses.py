"""The losses of one optimizer step: its batch in parts, on one process or on several."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from latentforge.model.losses import LossCounts, ObjectiveWeights, StudentBatch, StudentLoss
from latentforge.model.noise import RowNoise
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.run.device import autocast
from latentforge.trainer.training.micro_batches import micro_batches
from latentforge.trainer.training.optimisation import MicroLoss
from latentforge.trainer.training.parallel import ParallelModel


def student_losses(
    recipe: Recipe, model: ParallelModel, weights: ObjectiveWeights, batch: StudentBatch, step: int
) -> Iterator[MicroLoss]:
    """Those of a student's step.

    Args:
        recipe: precision and parts.
        model: of :func:`~latentforge.model.losses.loss_of`.
        weights: of the terms.
        batch: this process's share of the step's batch, on the model's device.
        step: decides the noise, which is the whole batch's.
    """
    # Before the first part: what each of them divides by is known of all of them alone, on all processes.
    counts = LossCounts(*model.ranks.sum(torch.stack(LossCounts.of(batch, model.chunk_size))))
    rows = len(batch.tokens) if batch.of is None else batch.of
    # As many on each process, since their exchanges have to meet.
    parts = min(recipe.student.optim.gradient_accumulation_steps, rows // model.ranks.size)
    for index, part in enumerate(micro_batches(len(batch.tokens), parts)):
        generator = step_generator(recipe.seed, step, batch.tokens.device)
        with model.part(is_last=index == parts - 1):
            with autocast(recipe, batch.tokens.device):
                loss: StudentLoss = model.losses(batch.rows(part), weights, generator, counts)
            total = model.scaled(loss.total)
            if batch.on_policy:
                # What is measured on on-policy text is no figure of the data.
                yield total, {"on_policy_loss": loss.total} | _terms(loss, weights.of_rows, "on_policy_")
            else:
                yield total, {"loss": loss.total} | _terms(loss, vars(weights))


def autoencoder_losses(recipe: Recipe, model: ParallelModel, chunks_nk: Tensor, step: int) -> Iterator[MicroLoss]:
    """Those of an autoencoder's step, of all of whose chunks this process takes its share."""
    share = model.ranks.share(len(chunks_nk))
    parts = min(recipe.autoencoder.optim.gradient_accumulation_steps, len(chunks_nk) // model.ranks.size)
    for index, part in enumerate(micro_batches(share.stop - share.start, parts)):
        generator = step_generator(recipe.seed, step, chunks_nk.device)
        first, rows = share.start + part.start, part.stop - part.start
        noise = RowNoise(generator, first, rows, len(chunks_nk))
        with model.part(is_last=index == parts - 1):
            with autocast(recipe, chunks_nk.device):
                terms = model.losses(chunks_nk[first : first + rows], noise)
            yield model.scaled(terms.total), {"ce": terms.ce, "kl": terms.kl, "exact": terms.token_accuracy}


def _terms(loss: StudentLoss, weights: Mapping[str, float], prefix: str = "") -> dict[str, Tensor]:
    """The terms of a loss that weigh something."""
    return {f"{prefix}{name}": getattr(loss, name) for name, weight in weights.items() if weight}

"""Likelihood of a student with the energy head: bounded by mixtures over drawn latents."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.metrics.mixture import nested_mixture
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.likelihood import Likelihood, check_lengths, logits_in_blocks

SIZES = (1, 8, 32, 128)
_DRAWS_AT_ONCE = 8


@torch.no_grad()
def evaluate_mixture(
    model: LatentModel,
    batches: Sequence[StudentBatch],
    *,
    sizes: Sequence[int] = SIZES,
    num_chunks: int = 512,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[int, Likelihood]:
    """The bound of the likelihood of held-out chunks at several numbers of drawn latents.

    Its ``nats`` are above the true ones in expectation, and fall towards them with N (``metrics.mixture``).

    Args:
        model: left in evaluation mode; with a deterministic head every N gives the exact likelihood.
        batches: held-out; chunks of which every token is valid are used.
        sizes: the N; the largest is how many latents are drawn for each chunk.
        num_chunks: how many chunks, evenly spread; all where there are fewer.
        seed: of the latents.
        on_batch: called after every batch.

    Raises:
        TrainerError: no batch has a whole chunk, or sequences do not fit the model.
    """
    model.eval()
    device, k = model.device, model.chunk_size
    for batch in batches:
        check_lengths(model, batch.tokens.shape[1])
    whole = [batch.valid.unflatten(1, (-1, k)).all(-1) for batch in batches]
    offsets = np.cumsum([0, *(int(w.sum()) for w in whole)])
    if not offsets[-1]:
        raise TrainerError("the held-out data has no chunk whose tokens are all counted; give longer sequences")
    picked = np.unique(np.linspace(0, offsets[-1] - 1, min(num_chunks, offsets[-1])).astype(np.int64))
    log_probs, tokens, sequences = [], [], []
    num_sequences = 0
    for index, (batch, usable) in enumerate(zip(batches, whole, strict=True)):
        mine = picked[(offsets[index] <= picked) & (picked < offsets[index + 1])] - offsets[index]
        rows, chunks = (axis[torch.from_numpy(mine)] for axis in usable.nonzero(as_tuple=True))
        if len(mine):
            generator = step_generator(seed, index, device)
            log_probs.append(_log_probs(model, batch.tokens.to(device), rows, chunks, max(sizes), generator))
            tokens.append(batch.tokens.unflatten(1, (-1, k))[rows, chunks])
            sequences.append(rows + num_sequences)
        num_sequences += len(batch.tokens)
        on_batch()
    bounds = nested_mixture(torch.cat(log_probs, 1), sizes)
    every_token = torch.cat(tokens).flatten()
    every_sequence = torch.cat(sequences).repeat_interleave(k)
    positions = torch.arange(k).repeat(len(every_token) // k)
    return {
        size: Likelihood(-bound.flatten(), every_token, every_sequence, positions, k) for size, bound in bounds.items()
    }


def _log_probs(
    model: LatentModel, tokens: Tensor, rows: Tensor, chunks: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    """log p(x_k | x_<k, z) of the chunks at (rows, chunks) [n] of tokens [b, L] under drawn latents, [draws, n, K]."""
    student, k = model.student, model.chunk_size
    tokens_btk = tokens.unflatten(1, (-1, k))
    at = rows.to(tokens.device), chunks.to(tokens.device)
    states = student.text_states(tokens_btk)
    hidden = model.hidden(tokens_btk, states)[at]
    embedded = student.embed(tokens_btk)
    reads, realised = [part[at] for part in student.decoder_reads(embedded, states)], tokens_btk[at]
    induction = model.induction(tokens_btk, embedded)
    # The places of the chunks' tokens among those of all tokens.
    picked = (at[0] * tokens.shape[1] + at[1] * k)[:, None] + torch.arange(k, device=tokens.device)
    picked = picked.flatten()
    found = []
    for first in range(0, draws, _DRAWS_AT_ONCE):
        num = min(_DRAWS_AT_ONCE, draws - first)
        latents = student.head(hidden, num, generator).flatten(0, 1)
        read = (part.repeat(num, 1, 1) for part in reads)
        layer = model.output_of_chunks(hidden.repeat(num, 1), latents, *read)
        if induction is not None:
            layer = layer._replace(induction=induction.at(picked.repeat(num)))
        wanted = realised.flatten().repeat(num)
        values = torch.empty(len(wanted), device=tokens.device)

        def use(part: slice, logits: Tensor, wanted: Tensor = wanted, values: Tensor = values) -> None:
            values[part] = logits.gather(1, wanted[part, None])[:, 0] - logits.logsumexp(1)

        logits_in_blocks(layer, torch.arange(len(wanted), device=tokens.device), use)
        found.append(values.view(num, -1, k).cpu())
    # Rounding may leave the log probability of a certain token a little above 0.
    return torch.cat(found).clamp(max=0)

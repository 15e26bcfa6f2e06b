"""What each part of a model is worth: how many nats a text costs more when the part is taken out of the finished model.

A state is taken out by its mean over the text, as in mean ablation: zeros are nothing that the layers behind it have
ever read, and would cost more than what the state says. This is not what a model trained without the part lacks, which
learns to do without it.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.chunk_decoder.windowed import WindowDecoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.output_loss import OutputLayer, TokenWeights, token_losses
from latentforge.model.sparse_kd import text_buckets
from latentforge.model.token_level import TokenLevelModel

Model = LatentModel | TokenLevelModel
Part = Literal["backbone", "latent", "copy", "window"]


def parts_of(model: Model) -> list[Part]:
    """The parts that a model has.

    Without ``backbone`` its state stands at its mean, and the latent is what the head makes of that; of a backbone with
    a split decoder, which is its last layers, the first ones' states, by places of a chunk. Without ``latent`` only the
    latent stands at its mean; without ``copy`` there are no induction heads; without ``window`` the chunk decoder
    begins every chunk as it does a text's first one, a recurrent one as well.
    """
    if isinstance(model, TokenLevelModel):
        has: dict[Part, bool] = {"backbone": True, "copy": model.induction is not None}
    else:
        student = model.student
        has = {
            "backbone": student.backbone is not None,
            "latent": model.writes_from_latents,
            "copy": student.induction is not None,
            "window": isinstance(student.chunk_decoder, RecurrentDecoder)
            or (isinstance(student.chunk_decoder, WindowDecoder) and student.config.chunk_decoder.window > 0),
        }
    return [part for part, is_there in has.items() if is_there]


@torch.no_grad()
def part_worth(
    model: Model,
    batches: Sequence[StudentBatch],
    noise: Callable[[int], torch.Generator],
    on_batch: Callable[[], None] = lambda: None,
) -> dict[Part, Tensor]:
    """Nats that each valid token costs more without each part, float64 [n] on the CPU, in the batches' order.

    The text is read twice, first for the means over the positions that predict a valid token. With an energy head all
    is under one drawn latent for each chunk.

    Args:
        model: left in evaluation mode.
        batches: on any device; L is a multiple of K.
        noise: the energy head's, by the batch's index: the same at every call.
        on_batch: called after every batch that is read.
    """
    model.eval()
    device, k = model.device, model.chunk_size
    sums: list[Tensor] = []
    count = 0
    for index, batch in enumerate(batches):
        # A chunk counts where one of its tokens does.
        counted = batch.valid.to(device).unflatten(1, (-1, k)).any(-1)
        states = _states(model, batch.tokens.to(device), noise(index))
        # Float64, since a sum over many positions keeps few digits in float32.
        totals = [state[counted].double().sum(0) for state in states]
        sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals
        count += int(counted.sum())
        on_batch()
    means = [total / max(count, 1) for total in sums]
    worth: dict[Part, list[Tensor]] = {part: [] for part in parts_of(model)}
    for index, batch in enumerate(batches):
        tokens, valid = batch.tokens.to(device), batch.valid.to(device)
        whole, without = _layers(model, tokens, means, noise, index)
        nats = _nats(model, whole, tokens, valid)
        for part, found in worth.items():
            found.append(_nats(model, without[part](), tokens, valid) - nats)
        on_batch()
    return {part: torch.cat(found) for part, found in worth.items()}


def _states(model: Model, tokens: Tensor, noise: torch.Generator) -> list[Tensor]:
    """What stands at its mean without a part, [b, t, …] each: the backbone's state, and the latent of those that may
    have one to read."""
    if isinstance(model, TokenLevelModel):
        # The state times a constant.
        return [model.output(tokens).inputs.view(*tokens.shape, -1)]
    chunks = tokens.unflatten(1, (-1, model.chunk_size))
    if isinstance(model.student.chunk_decoder, SplitDecoder):
        return [model.student.lower_states(chunks).unflatten(1, chunks.shape[1:])]
    hidden = model.hidden(chunks)
    return [hidden, model.student.head(hidden, 1, noise)[0]]


def _layers(
    model: Model, tokens: Tensor, means: Sequence[Tensor], noise: Callable[[int], torch.Generator], index: int
) -> tuple[OutputLayer, dict[Part, Callable[[], OutputLayer]]]:
    """The output layer of tokens [b, L], and what makes that without each part: one at a time, each has a table."""
    if isinstance(model, TokenLevelModel):
        whole = model.output(tokens)
        (mean,) = means
        return whole, {
            "backbone": lambda: whole._replace(inputs=_everywhere(mean, whole.inputs)),
            "copy": lambda: whole._replace(induction=None),
        }
    chunks = tokens.unflatten(1, (-1, model.chunk_size))
    if isinstance(model.student.chunk_decoder, SplitDecoder):
        return _layers_of_split(model, chunks, means[0])
    hidden, latents = _states(model, tokens, noise(index))
    mean_hidden, mean_latents = (_everywhere(mean, state) for mean, state in zip(means, (hidden, latents), strict=True))
    whole = model.output(chunks, hidden, latents)

    def without_backbone() -> OutputLayer:
        return model.output(chunks, mean_hidden, model.student.head(mean_hidden, 1, noise(index))[0])

    def without_window() -> OutputLayer:
        # Each chunk as a text of its own, but for the induction heads.
        alone = (x.flatten(0, 1)[:, None] for x in (chunks, hidden, latents))
        return model.output(*alone)._replace(induction=whole.induction)

    return whole, {
        "backbone": without_backbone,
        "latent": lambda: model.output(chunks, hidden, mean_latents),
        "copy": lambda: whole._replace(induction=None),
        "window": without_window,
    }


def _layers_of_split(
    model: LatentModel, chunks: Tensor, mean: Tensor
) -> tuple[OutputLayer, dict[Part, Callable[[], OutputLayer]]]:
    """As :func:`_layers`, of a student whose decoder is the backbone's last layers; it has no latent to read."""
    student = model.student
    none = student.bias.new_empty(*chunks.shape[:2], 0)

    def written(states: Tensor | None) -> OutputLayer:
        assert states is not None
        return model.output(chunks, states[:, :, 0], none, states)

    whole = written(student.text_states(chunks))
    lower = mean.to(student.bias.dtype).expand(*chunks.shape[:2], -1, -1).flatten(1, 2)
    return whole, {
        "backbone": lambda: written(student.text_states(chunks, lower)),
        "copy": lambda: whole._replace(induction=None),
    }


def _everywhere(mean: Tensor, like: Tensor) -> Tensor:
    return mean.to(like.dtype).expand_as(like)


def _nats(model: Model, layer: OutputLayer, tokens: Tensor, valid: Tensor) -> Tensor:
    """Of the valid tokens of [b, L], float64 [n] on the CPU."""
    unweighted = torch.zeros(tokens.numel(), device=tokens.device)
    weights = TokenWeights(ce=unweighted, kd=unweighted)
    losses = token_losses(layer, text_buckets(tokens.flatten()), weights, model.logit_passes)
    return losses.each.ce[valid.flatten()].double().cpu()

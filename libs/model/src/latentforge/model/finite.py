"""Whether a student's numbers are numbers: one that diverged still loads, and greedily writes something."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentforge.model.chunks import to_chunks
from latentforge.model.latent_model import LatentModel


def check_finite(model: nn.Module) -> None:
    """Checks every weight.

    Raises:
        ValueError: one is NaN or infinite; the message says which.
    """
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"the weights {name} are not finite")


@torch.inference_mode()
def finite_logits(model: LatentModel, token_ids: Sequence[int]) -> Tensor:
    """The teacher-forced logits of every token of a text, float32 [n, V].

    Args:
        model: in evaluation mode.
        token_ids: the text's n ids, at least one.

    Raises:
        ValueError: a logit is NaN or infinite.
    """
    text = torch.tensor([list(token_ids)], dtype=torch.int64, device=model.device)
    chunks_btk = to_chunks(text, model.chunk_size, model.student.config.pad_id)
    # A generator of its own: whoever trains on must draw the same numbers with and without this check.
    noise = torch.Generator(model.device).manual_seed(0)
    logits_btkv = model.logits(chunks_btk, noise).logits
    if not logits_btkv.isfinite().all():
        raise ValueError(f"the logits of a text of {len(token_ids)} tokens are not finite")
    # Pads stand on the left of the first chunk.
    return logits_btkv[0].flatten(0, 1)[-len(token_ids) :].float()

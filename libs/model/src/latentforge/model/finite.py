"""Whether a student's numbers are numbers: one that diverged still loads, and greedily writes something."""

from collections.abc import Sequence

import torch

from latentforge.model.chunks import to_chunks
from latentforge.model.latent_model import LatentModel


def check_finite(model: LatentModel, token_ids: Sequence[int]) -> None:
    """Checks every weight, and every teacher-forced logit of a text.

    Args:
        model: in evaluation mode.
        token_ids: the text; of an empty one the first chunk is looked at.

    Raises:
        ValueError: one is NaN or infinite; the message says which.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"the weights {name} are not finite")
    config, device = model.student.config, model.device
    text = torch.tensor([list(token_ids) or [config.eos_id]], dtype=torch.int64, device=device)
    chunks_btk = to_chunks(text, config.chunk_size, config.pad_id)
    # A generator of its own: whoever trains on must draw the same numbers with and without this check.
    noise = torch.Generator(device).manual_seed(0)
    with torch.inference_mode():
        logits_btkv = model.logits(chunks_btk, noise).logits
    if not logits_btkv.isfinite().all():
        raise ValueError(f"the logits of a text of {len(token_ids)} tokens are not finite")

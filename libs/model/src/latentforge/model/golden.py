"""The golden text of a checkpoint: what a student makes of a text that it has not learnt from, told and checked.

Files that are whole can still be put together wrong: by a publisher that saved other weights than it measured, a
version that computes something else from them, a library or a processor that computes it badly. All of it shows in log
probabilities, where a greedy continuation of a prompt hides most of it.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latentforge.core.manifest import Golden
from latentforge.model.finite import check_finite, finite_logits
from latentforge.model.latent_model import LatentModel

# Tokens of a golden text, where the student reads so many.
GOLDEN_TOKENS = 256
# Nats by which a log probability may differ, and by how much a summed-up probability may. In float32 the shipped
# student differs by 7e-6 between one and two threads, SSE, AVX2 and AVX-512, and from float64; one of 12 layers with
# random weights, surer of itself than any that has learnt, by 2e-4. In bfloat16 the two are off by 0.1 and 1.
TOLERANCE = 2e-3
_DECIMALS = 6
_AT_ONCE = 32


def golden_of(model: LatentModel, text: str, token_ids: Sequence[int], seed: int = 0) -> Golden:
    """What a student makes of a text, computed on a CPU in float32, where it is checked too.

    Args:
        model: what is published; left in evaluation mode.
        text: of the evaluation split.
        token_ids: its ids as a prompt has them, at least one.
        seed: of the draws.

    Raises:
        ValueError: a weight or a logit is not finite.
    """
    model = model.eval()
    if model.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    check_finite(model)
    uniforms = torch.rand(len(token_ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Rounded down, as 1 is not drawn.
    uniforms = (uniforms * 10**_DECIMALS).floor() / 10**_DECIMALS
    logprobs, drawn_ids = [], []
    for at, all_logprobs in _logprobs(model, token_ids):
        part = slice(at, at + len(all_logprobs))
        logprobs += all_logprobs.gather(1, torch.tensor(token_ids[part])[:, None])[:, 0].tolist()
        drawn = torch.searchsorted(all_logprobs.exp().cumsum(1), uniforms[part, None], right=True)
        drawn_ids += drawn[:, 0].clamp(max=model.vocab_size - 1).tolist()
    return Golden(
        text=text,
        token_ids=tuple(token_ids),
        logprobs=tuple(round(logprob, _DECIMALS) for logprob in logprobs),
        uniforms=tuple(round(u, _DECIMALS) for u in uniforms.tolist()),
        drawn_ids=tuple(drawn_ids),
    )


def check_golden(model: LatentModel, golden: Golden) -> None:
    """Has a student, on the CPU and in evaluation mode, read the golden text.

    A draw is compared by the probability that is summed up before and with the id that was drawn: which of two ids is
    drawn may hang on the last bit.

    Raises:
        ValueError: a weight or a logit is not finite, the student cannot read the text, or it makes something else of
            it; the message says what and where.
    """
    check_finite(model)
    if strange := [i for i in (*golden.token_ids, *golden.drawn_ids) if not 0 <= i < model.vocab_size]:
        raise ValueError(f"the golden text has id {strange[0]}, but the vocabulary only {model.vocab_size} ids")
    if len(golden.token_ids) > model.max_tokens:
        raise ValueError(
            f"the golden text has {len(golden.token_ids)} tokens, but the student reads {model.max_tokens}"
        )
    for at, all_logprobs in _logprobs(model, golden.token_ids):
        part = slice(at, at + len(all_logprobs))
        ids, drawn = (torch.tensor(values[part])[:, None] for values in (golden.token_ids, golden.drawn_ids))
        found = all_logprobs.gather(1, ids)[:, 0]
        said, uniforms = (
            torch.tensor(values[part], dtype=torch.float64) for values in (golden.logprobs, golden.uniforms)
        )
        off = (found - said).abs()
        worst = int(off.argmax())
        if not off[worst] <= TOLERANCE:
            raise ValueError(
                f"token {at + worst} of the golden text has a log probability of {float(found[worst]):.4f}, but the "
                f"manifest says {float(said[worst]):.4f}; the weights are not those that were published, or this "
                "version computes something else from them"
            )
        probabilities = all_logprobs.exp()
        summed, of_drawn = (table.gather(1, drawn)[:, 0] for table in (probabilities.cumsum(1), probabilities))
        outside = torch.maximum(summed - of_drawn - uniforms, uniforms - summed)
        worst = int(outside.argmax())
        if not outside[worst] <= TOLERANCE:
            raise ValueError(
                f"at token {at + worst} of the golden text {float(uniforms[worst]):.4f} does not draw id "
                f"{golden.drawn_ids[at + worst]}, as the manifest says"
            )


def _logprobs(model: LatentModel, token_ids: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(place of the first, log probabilities float64 [≤ 32, V]) of a text's tokens, some at a time."""
    logits = finite_logits(model, token_ids)
    for at in range(0, len(token_ids), _AT_ONCE):
        yield at, logits[at : at + _AT_ONCE].double().log_softmax(1)

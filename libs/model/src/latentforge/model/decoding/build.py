"""From a model to the decoding of many texts with it."""

from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.decoding.tables import store_for_decoding
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel


def batch_decoding(
    model: LatentModel | TokenLevelModel, num_slots: int, *, max_tokens: int | None = None, exact: bool = False
) -> SlotDecoding:
    """The decoding of up to ``num_slots`` texts at once, on the model's device; puts the model in evaluation mode.

    Memory is taken here and not later. Weights are held once: the model's are fused, and stored as decoding reads them
    best, in place. They go on being the model's, so that changes made in place are seen, but for those of biases,
    induction heads and the maps to corrections and to a narrow output table, which are copied. Whoever moves the model
    to another device makes a new decoding.

    Args:
        model: a latent or a token-level student.
        num_slots: texts that may be open at the same time, at least 1.
        max_tokens: the longest text, pads of the first chunk included; the model's own bound by default.
        exact: a text's numbers are bit for bit the same whatever is written beside it. Every text is then computed by
            itself, and many at once take as long as one after the other. Otherwise products of another number of texts
            round otherwise: 133 of a million tokens of the shipped student at temperature 1 are another one beside 15
            texts than alone (``python -m benchmarks.batch_rounding --tokens 150000``, seed 0, AMD EPYC, 2026-11-28).

    Raises:
        ValueError: num_slots is below 1, or max_tokens is less than a chunk or more than the model's.
    """
    if num_slots < 1:
        raise ValueError(f"num_slots={num_slots}; set it to at least 1")
    k = model.chunk_size
    longest = model.max_tokens if max_tokens is None else max_tokens // k * k
    if not k <= longest <= model.max_tokens:
        raise ValueError(f"max_tokens={max_tokens} is not in {k}..{model.max_tokens}, this model's context")
    model.eval()
    store_for_decoding(model, one_by_one=exact or num_slots == 1)
    return SlotDecoding(model, num_slots, longest, exact=exact, by_column=True)

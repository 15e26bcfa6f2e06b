"""From logits to tokens, many texts at once, each by its own settings and its own random numbers.

In this order: logit_bias, penalties, temperature, top_k, top_p, min_p, one draw. A temperature below 1 leaves the copy
boosts of induction heads as strong as they are.
"""

from latentforge.model.sampling.batch import BatchSampler, NonFiniteLogitsError
from latentforge.model.sampling.logprobs import logprobs_of
from latentforge.model.sampling.params import LEAST_TEMPERATURE, SamplingParams
from latentforge.model.sampling.text import TextSampling, texts_of_rows

__all__ = [
    "LEAST_TEMPERATURE",
    "BatchSampler",
    "NonFiniteLogitsError",
    "SamplingParams",
    "TextSampling",
    "logprobs_of",
    "texts_of_rows",
]

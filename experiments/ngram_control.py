"""The control that only counts: held-out nats per token of an n-gram model of what a student learns from."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from experiments.ngram import NgramModel
from experiments.ngram_cache import TextCache
from experiments.results import ModelResult
from latentforge.text.errors import TextError
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_order import batch_indices
from latentforge.trainer.evaluate.estimate import mean
from latentforge.trainer.evaluate.stages import stage
from latentforge.trainer.targets.batches import held_out_indices

# The cache's few weights need no more.
_TUNING_SEQUENCES = 40
_TUNING_PERCENT = 5


def ngram_results(
    data: PackedData,
    held_out: PackedData,
    *,
    order: int,
    cache: int,
    max_tokens: int | None,
    sequences: int,
    seed: int,
    console: Console,
) -> list[ModelResult]:
    """Counts a student's text, and gives nats per token without and with a cache of each text's beginning.

    The tokens are those that ``trainer evaluate`` takes: all but the first of each of the evenly spread sequences. The
    cache's weights are fitted on the last sequences of the data, by a model that has not counted them.

    Args:
        data: what is counted.
        held_out: what is reported on.
        order: n of the longest n-grams.
        cache: tokens that the cache goes by at most.
        max_tokens: counts the sequences that a student of this seed reads first; None counts all.
        sequences: of the held-out data.
        seed: of the data's order and of the intervals.
        console: shows how far it is.

    Raises:
        TextError: the two are of different tokenizers, or there is too little data.
    """
    if data.meta.tokenizer_fingerprint != held_out.meta.tokenizer_fingerprint:
        raise TextError(
            f"{held_out.folder} was packed with the tokenizer {held_out.meta.tokenizer_fingerprint}, {data.folder} "
            f"with {data.meta.tokenizer_fingerprint}; pack both with one"
        )
    length = data.meta.sequence_length
    num = len(data) if max_tokens is None else min(len(data), max_tokens // length)
    num_tuning = min(_TUNING_SEQUENCES, max(1, len(data) * _TUNING_PERCENT // 100))
    counted = batch_indices(len(data), num, seed, 0) if num else np.empty(0, np.int64)
    apart = counted[counted < len(data) - num_tuning]
    if not len(apart):
        raise TextError(f"{data.folder} has {len(data)} sequences of {length} tokens, and {num} are too few to count")
    tuning, text = (
        _sequences(data, range(len(data) - num_tuning, len(data))),
        _sequences(held_out, held_out_indices(held_out, sequences)),
    )

    def counts_of(indices: NDArray[np.int64]) -> NgramModel:
        with stage(console, f"counting {len(indices) * length:,} tokens", order) as advance:
            return NgramModel(_sequences(data, np.sort(indices)), order, data.meta.vocab_size, advance)

    model = counts_of(apart)
    memory = TextCache(cache)
    memory.fit(tuning, model.probabilities(tuning))
    if len(apart) < len(counted):
        model = counts_of(counted)
    plain = model.probabilities(text)
    found = {"ngram": plain, "ngram_cache": memory.mixed_with(text, plain)}
    return [_result(f"{name}_nats_per_token", p, len(counted) * length, seed) for name, p in found.items()]


def _sequences(data: PackedData, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.integer]:
    tokens: NDArray[np.integer] = data.tokens.reshape(len(data), -1)[np.asarray(indices)]
    return tokens


def _result(name: str, probabilities: NDArray[np.float64], tokens: int, seed: int) -> ModelResult:
    nats = torch.from_numpy(-np.log(probabilities[:, 1:]))
    of = torch.arange(len(nats))[:, None].expand_as(nats)
    estimate = mean(nats.flatten(), of.flatten(), seed)
    return ModelResult(
        id=name, value=estimate.value, unit="nats/token", low=estimate.low, high=estimate.high, tokens=tokens
    )

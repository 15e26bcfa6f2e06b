"""The n-gram control against dictionaries, one probability at a time."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from experiments.ngram import NgramModel
from experiments.ngram_cache import TextCache
from experiments.ngram_control import ngram_results
from latentforge.text.errors import TextError
from latentforge.text.packed import META, PackedData
from latentforge.trainer.data.sequence_order import batch_indices

V = 6
Gram = tuple[int, ...]


def text(num: int, length: int, seed: int) -> NDArray[np.int64]:
    """Ids that depend on the two before them, so that all orders are of use."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, V, (num, length))
    for i in range(2, length):
        rows[:, i] = np.where(rng.random(num) < 0.6, (rows[:, i - 1] + 2 * rows[:, i - 2]) % V, rows[:, i])
    return rows


class SlowKneserNey:
    """The formulas of :mod:`experiments.ngram` as they stand there."""

    def __init__(self, sequences: Sequence[Sequence[int]], order: int) -> None:
        self.counts: list[Counter[Gram]] = [Counter() for _ in range(order + 1)]
        for n in range(1, order + 1):
            grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
            if n == order:
                self.counts[n].update(grams)
            else:
                longer = {tuple(s[i : i + n + 1]) for s in sequences for i in range(len(s) - n)}
                self.counts[n].update(gram[1:] for gram in longer)

    def discount(self, n: int, count: int) -> float:
        if count == 0:
            return 0.0
        of = [sum(c == i for c in self.counts[n].values()) for i in (1, 2, 3, 4)]
        i = min(count, 3)
        if 0 in of:
            return (0.5, 1.0, 1.5)[i - 1]
        y = of[0] / (of[0] + 2 * of[1])
        return max(0.0, i - (i + 1) * y * of[i] / of[i - 1])

    def probability(self, context: Gram, token: int) -> float:
        n = len(context) + 1
        lower = self.probability(context[1:], token) if context else 1 / V
        counts = {w: self.counts[n][(*context, w)] for w in range(V)}
        if not (total := sum(counts.values())):
            return lower
        left = sum(self.discount(n, c) for c in counts.values())
        count = counts[token]
        return (count - self.discount(n, count) + left * lower) / total


@pytest.mark.parametrize(("order", "num"), [(1, 3), (2, 3), (3, 40), (4, 2), (5, 60)])
def test_probabilities_are_those_of_dictionaries(order: int, num: int) -> None:
    counted, asked = text(num, 20, 1), text(3, 12, 2)
    slow = SlowKneserNey(counted.tolist(), order)
    wanted = [
        [slow.probability(tuple(row[max(0, i - order + 1) : i]), row[i]) for i in range(12)] for row in asked.tolist()
    ]
    model = NgramModel(counted.astype(np.uint16), order, V)
    np.testing.assert_allclose(model.probabilities(asked), wanted, rtol=1e-12)
    assert model.num_ngrams == sum(len(counts) for counts in slow.counts)


def last_tokens(context: Sequence[int]) -> NDArray[np.int64]:
    """The context with each token behind it."""
    return np.array([[*context, token] for token in range(V)])


@pytest.mark.parametrize("context", [[], [3], [0, 1], [5, 5, 5, 5, 5], text(1, 9, 7)[0].tolist()])
def test_probabilities_of_all_tokens_sum_to_1(context: list[int]) -> None:
    asked = last_tokens(context)
    plain = NgramModel(text(30, 20, 1), 4, V).probabilities(asked)
    cache = TextCache(3)
    cache.weights = np.array([0.1, 0.3, 0.7, 0.9])
    both = cache.mixed_with(asked, plain)
    for found in (plain, both):
        assert (found > 0).all()
        assert found[:, -1].sum() == pytest.approx(1, abs=1e-12)


def test_the_cache_mixes_in_what_followed_in_the_text_so_far() -> None:
    ids, other = text(1, 40, 3)[0].tolist(), np.random.default_rng(0).random(40)
    cache = TextCache(2)
    cache.weights = np.array([0.2, 0.5, 0.8])
    wanted = []
    for place, token in enumerate(ids):
        p = other[place]
        for m, weight in enumerate(cache.weights):
            if m > place:
                break
            last = ids[place - m : place]
            behind = [ids[i + m] for i in range(place - m) if ids[i : i + m] == last]
            if behind:
                p = (1 - weight) * p + weight * behind.count(token) / len(behind)
        wanted.append(p)
    np.testing.assert_allclose(cache.mixed_with(np.array([ids]), other[None])[0], wanted, rtol=1e-12)


def drawn_with(weights: Sequence[float], num: int, length: int) -> NDArray[np.int64]:
    """Texts that are drawn as the cache says, by these weights, over the uniform distribution."""
    rng = np.random.default_rng(4)
    rows: list[list[int]] = []
    for _ in range(num):
        ids: list[int] = []
        while len(ids) < length:
            ids.append(int(rng.integers(V)))
            place = len(ids) - 1
            for m, weight in enumerate(weights):
                behind = [ids[i + m] for i in range(place - m) if ids[i : i + m] == ids[place - m : place]]
                if behind and rng.random() < weight:
                    ids[place] = int(rng.choice(behind))
        rows.append(ids)
    return np.array(rows)


def test_fitted_weights_are_the_best_ones() -> None:
    sequences = drawn_with([0.3, 0.4, 0.6], 6, 100)
    other = np.full(sequences.shape, 1 / V)
    cache = TextCache(2)
    cache.fit(sequences, other)

    def nats(weights: NDArray[np.float64]) -> float:
        moved = TextCache(2)
        moved.weights = weights
        return float(-np.log(moved.mixed_with(sequences, other)).mean())

    best = nats(cache.weights)
    assert best < nats(np.full(3, 0.1)) - 0.01
    for m in range(3):
        for factor in (0.8, 1.25):
            weights = cache.weights.copy()
            weights[m] *= factor
            assert best < nats(weights)


def packed(folder: Path, rows: NDArray[np.int64], fingerprint: str = "a") -> PackedData:
    folder.mkdir()
    rows.astype("<u2").tofile(folder / "tokens.bin")
    np.zeros(0, "<i8").tofile(folder / "documents.bin")
    meta = dict.fromkeys(("num_documents", "num_empty_documents", "num_dropped_tokens"), 0)
    sizes = {"num_sequences": len(rows), "sequence_length": rows.shape[1], "vocab_size": V, "chunk_size": 1}
    ids = {"dtype": "uint16", "eos_id": 0, "pad_id": V, "bos_id": None, "tokenizer_fingerprint": fingerprint}
    about = {"source": "s", "source_sha256": "x", "split": "train"}
    (folder / META).write_text(json.dumps(meta | sizes | ids | about))
    return PackedData(folder)


def results(data: PackedData, held_out: PackedData, max_tokens: int | None = None) -> dict[str, float]:
    options = {"order": 3, "cache": 2, "sequences": 40, "seed": 0, "console": Console(quiet=True)}
    found = ngram_results(data, held_out, max_tokens=max_tokens, **options)  # type: ignore[arg-type]
    return {result.id: result.value for result in found if result.value is not None}


def test_it_reports_on_all_but_the_first_tokens(tmp_path: Path) -> None:
    rows, asked = text(60, 20, 1), text(5, 20, 2)
    found = results(packed(tmp_path / "data", rows), packed(tmp_path / "held-out", asked))
    slow = SlowKneserNey(rows.tolist(), 3)
    probabilities = [slow.probability(tuple(r[max(0, i - 2) : i]), r[i]) for r in asked.tolist() for i in range(1, 20)]
    assert found["ngram_nats_per_token"] == pytest.approx(np.mean([-math.log(p) for p in probabilities]))
    assert found["ngram_cache_nats_per_token"] != found["ngram_nats_per_token"]


def test_so_many_tokens_are_those_that_a_student_reads_first(tmp_path: Path) -> None:
    rows, asked = text(60, 20, 1), packed(tmp_path / "held-out", text(5, 20, 2))
    data = packed(tmp_path / "data", rows)
    some = packed(tmp_path / "some", rows[batch_indices(60, 13, 0, 0)])
    name = "ngram_nats_per_token"
    assert results(data, asked, 13 * 20 + 7)[name] == pytest.approx(results(some, asked)[name])


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = packed(tmp_path / "data", text(60, 20, 1))
    with pytest.raises(TextError, match=r"tokenizer b, .* a; pack both with one"):
        results(data, packed(tmp_path / "other", text(5, 20, 2), "b"))
    with pytest.raises(TextError, match="60 sequences of 20 tokens, and 0 are too few to count"):
        results(data, data, 19)

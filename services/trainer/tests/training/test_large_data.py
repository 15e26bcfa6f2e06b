"""10^10 tokens, of which the disk holds none: a file that has a size, and nothing in it."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.model.autoencoder import Autoencoder
from latentforge.text.packed import DOCUMENTS, META, TOKENS, PackedData
from latentforge.trainer.data.sequence_order import batch_indices
from latentforge.trainer.targets.batches import held_out_sequences, training_sequences
from latentforge.trainer.training.autoencoder import _EVALUATED_CHUNKS, chunk_batch, training_text
from latentforge.trainer.training.validation import evaluate_autoencoder

TOKENS_IN_ALL = 10**10
LENGTH = 2048


def sparse(folder: Path, meta: dict[str, Any], num_tokens: int) -> PackedData:
    folder.mkdir()
    count = num_tokens // LENGTH
    with (folder / TOKENS).open("wb") as file:
        file.truncate(count * LENGTH * 2)
    (folder / DOCUMENTS).write_bytes(np.array([0], "<i8").tobytes())
    changed = {"num_sequences": count, "sequence_length": LENGTH, "dtype": "uint16"}
    (folder / META).write_text(json.dumps({**meta, **changed}))
    return PackedData(folder)


@pytest.fixture
def large(tmp_path: Path, packed: PackedData) -> PackedData:
    data = sparse(tmp_path / "large", packed.meta.model_dump(), TOKENS_IN_ALL)
    assert (tmp_path / "large" / TOKENS).stat().st_blocks < 1000
    assert len(data.tokens) > TOKENS_IN_ALL - LENGTH
    return data


def peak_mb(work: Callable[[], Any]) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_the_order_of_chunks_and_sequences_takes_bounded_memory(large: PackedData, make_run: Any) -> None:
    run = make_run()
    recipe = run.recipe.autoencoder
    # Listed, the order of the chunks of four tokens would be 20,000 MB.
    assert peak_mb(lambda: chunk_batch(training_text(large, None, 0), recipe, 4, 1, 260, 0, 12_345)) < 5
    assert peak_mb(lambda: training_sequences(run, large, 12_345)) < 90
    # A number for each sequence, and no token of theirs.
    assert peak_mb(lambda: chunk_batch(training_text(large, TOKENS_IN_ALL, 1), recipe, 4, 1, 260, 1, 7)) < 350


def test_every_part_of_a_large_stream_is_taken(large: PackedData) -> None:
    chunks = TOKENS_IN_ALL // 4
    taken = np.concatenate([batch_indices(chunks, 1000, 0, step) for step in (0, 99, 10**6)])
    assert taken.max() > 0.99 * chunks
    assert taken.min() < 0.01 * chunks


def test_evaluation_looks_at_a_bounded_part(tmp_path: Path, packed: PackedData, make_run: Any) -> None:
    held_out = sparse(tmp_path / "held", packed.meta.model_dump(), TOKENS_IN_ALL // 20)
    autoencoder = Autoencoder(make_run().recipe.autoencoder_config(260, 1))
    found: dict[str, float] = {}

    def evaluate() -> None:
        found.update(evaluate_autoencoder(autoencoder, held_out, 0, 2048))

    # A list of all 125 million chunks would be 1,000 MB.
    assert peak_mb(evaluate) < 20
    assert found["chunks"] == 2048
    assert 2048 < _EVALUATED_CHUNKS < 10**6
    assert peak_mb(lambda: held_out_sequences(held_out, 64)) < 20


def test_tokens_are_counted_in_blocks(tmp_path: Path, packed: PackedData) -> None:
    data = sparse(tmp_path / "some", packed.meta.model_dump(), 50_000_000)
    with (tmp_path / "some" / TOKENS).open("r+b") as file:
        for place, token in ((0, 7), (2**20 - 1, 8), (2**20, 8), (len(data.tokens) - 1, 9)):
            file.seek(2 * place)
            file.write(np.array([token], "<u2").tobytes())
    counts: list[Any] = []
    # Widened all at once they would be 400 MB.
    assert peak_mb(lambda: counts.append(data.token_counts(260))) < 20
    assert counts[0][[7, 8, 9]].tolist() == [1, 2, 1]
    assert counts[0].sum() == len(data.tokens)
    part = data.part(1, 3)
    assert part.token_counts(260).tolist() == np.bincount(part.tokens, minlength=260).tolist()

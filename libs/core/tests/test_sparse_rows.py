import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentforge.core.sparse_rows import CorruptRowsError, LogprobDtype, SparseRows, pack, unpack
from latentforge.core.wire import dtype_from_proto, rows_from_proto, rows_to_proto
from latentforge.teacher.v1 import teacher_pb2 as pb


def random_rows(seed: int, n: int, k: int, *, vocab: int = 50, unmapped: bool = False) -> SparseRows:
    """Rows cut from full random distributions, so that every field has its true value."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, vocab)) * 3
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logprobs, axis=1)
    realised = rng.integers(0, vocab, size=n)
    counts = rng.integers(0, k + 1, size=n)
    kept = np.take_along_axis(logprobs, order[:, :k], axis=1)
    valid = np.arange(k)[None, :] < counts[:, None]
    return SparseRows(
        first_position=1,
        ids=np.where(valid, order[:, :k], 0).astype(np.uint32),
        logprobs=np.where(valid, kept, 0).astype(np.float32),
        counts=counts.astype(np.uint16),
        realised_logprobs=np.take_along_axis(logprobs, realised[:, None], axis=1)[:, 0].astype(np.float32),
        realised_ranks=(np.argmax(order == realised[:, None], axis=1) + 1).astype(np.uint32),
        tail_mass=(1 - np.where(valid, np.exp(kept), 0).sum(axis=1)).astype(np.float32),
        unmapped_mass=rng.random(n).astype(np.float32) if unmapped else None,
    )


def assert_same(a: SparseRows, b: SparseRows, dtype: LogprobDtype) -> None:
    assert a.first_position == b.first_position
    for name in ("ids", "counts", "realised_logprobs", "realised_ranks", "tail_mass"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    expected = a.logprobs.astype(np.float16) if dtype == "float16" else a.logprobs
    np.testing.assert_array_equal(expected.astype(np.float32), b.logprobs)
    assert (a.unmapped_mass is None) == (b.unmapped_mass is None)
    if a.unmapped_mass is not None:
        np.testing.assert_array_equal(a.unmapped_mass, b.unmapped_mass)


cases = given(
    seed=st.integers(0, 1000),
    n=st.integers(0, 9),
    k=st.integers(1, 20),
    unmapped=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
)


@cases
@settings(deadline=None)
def test_pack_and_wire_keep_every_field(seed: int, n: int, k: int, unmapped: bool, dtype: LogprobDtype) -> None:
    rows = random_rows(seed, n, k, unmapped=unmapped)
    assert_same(rows, unpack(pack(rows, dtype)), dtype)
    # An empty bytes field cannot tell "no rows" from "exact ids".
    if n:
        assert_same(rows, rows_from_proto(rows_to_proto(rows, dtype)), dtype)


@given(seed=st.integers(0, 100), position=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(deadline=None)
def test_a_flipped_bit_never_unpacks_to_other_rows(seed: int, position: int, bit: int) -> None:
    rows = random_rows(seed, 5, 8)
    data = bytearray(pack(rows))
    data[position % len(data)] ^= 1 << bit
    try:
        found = unpack(bytes(data))
    except CorruptRowsError:
        return
    # Only the header's first_position and unused flag bits are outside the checksum's reach.
    assert_same(rows, SparseRows(**{**vars(found), "first_position": 1}), "float16")


@pytest.mark.parametrize("cut", [0, 3, 19, 25, -1])
def test_a_cut_value_is_refused(cut: int) -> None:
    with pytest.raises(CorruptRowsError):
        unpack(pack(random_rows(0, 4, 5))[:cut])


@given(seed=st.integers(0, 1000), k=st.integers(1, 12))
@settings(deadline=None)
def test_narrowed_rows_are_those_cut_at_the_smaller_k(seed: int, k: int) -> None:
    wide = random_rows(seed, 6, 12)
    narrow = wide.narrowed(k)
    assert narrow.ids.shape == (6, k)
    valid = np.arange(k)[None, :] < narrow.counts[:, None]
    mass = np.where(valid, np.exp(narrow.logprobs.astype(np.float64)), 0).sum(axis=1)
    np.testing.assert_allclose(narrow.tail_mass, 1 - mass, atol=1e-5)
    np.testing.assert_array_equal(narrow.realised_logprobs, wide.realised_logprobs)


def test_refuses_impossible_arrays() -> None:
    rows = random_rows(0, 4, 5)
    with pytest.raises(ValueError, match="k=6 asked of rows that hold 5"):
        rows.narrowed(6)
    with pytest.raises(ValueError, match="counts has shape"):
        SparseRows(**{**vars(rows), "counts": rows.counts[:-1]})
    with pytest.raises(ValueError, match="more than the 5 entries"):
        SparseRows(**{**vars(rows), "counts": rows.counts + np.uint16(9)})


def test_minus_infinity_survives_float16_as_a_finite_number() -> None:
    rows = random_rows(0, 1, 2)
    hopeless = SparseRows(**{**vars(rows), "logprobs": np.array([[-np.inf, -np.inf]], np.float32)})
    assert np.isfinite(unpack(pack(hopeless)).logprobs).all()


def test_an_undefined_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="logprob_dtype is 7"):
        dtype_from_proto(7)  # type: ignore[arg-type]
    assert dtype_from_proto(pb.LOGPROB_DTYPE_UNSPECIFIED) == "float16"

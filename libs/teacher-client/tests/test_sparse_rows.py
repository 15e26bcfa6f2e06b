import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import (
    CorruptRowsError,
    LogprobDtype,
    PackedRows,
    SparseRows,
    join_rows,
    pack,
    unpack,
)
from latentforge.teacher_client.wire import dtype_from_proto, is_packed, rows_from_proto, rows_to_proto


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


@cases
@settings(deadline=None)
def test_packed_rows_travel_as_they_are_and_say_what_they_hold(
    seed: int, n: int, k: int, unmapped: bool, dtype: LogprobDtype
) -> None:
    rows = random_rows(seed, n, k, unmapped=unmapped)
    packed = PackedRows.read(pack(rows, dtype))
    assert (len(packed), packed.top_k, packed.first_position, packed.dtype) == (n, k, 1, dtype)
    assert packed == PackedRows.of(rows, dtype)
    message = rows_to_proto(packed, dtype, packed=True)
    assert message.packed == packed.data
    assert message == rows_to_proto(rows, dtype, packed=True)
    assert_same(rows, rows_from_proto(message), dtype)
    # A cached answer has the same arrays as a fresh one, to the byte.
    assert rows_to_proto(packed, dtype) == rows_to_proto(rows, dtype)


@given(seed=st.integers(0, 100), position=st.integers(0, 10_000), change=st.integers(1, 255), n=st.integers(0, 5))
@settings(deadline=None)
def test_a_changed_byte_is_always_found(seed: int, position: int, change: int, n: int) -> None:
    data = bytearray(pack(random_rows(seed, n, 8)))
    data[position % len(data)] ^= change
    with pytest.raises(CorruptRowsError):
        unpack(bytes(data))


@given(seed=st.integers(0, 100), cut=st.integers(0, 10_000), more=st.binary(max_size=5))
@settings(deadline=None)
def test_a_value_that_was_cut_or_goes_on_is_always_found(seed: int, cut: int, more: bytes) -> None:
    data = pack(random_rows(seed, 5, 8))
    other = data[: cut % len(data)] + more
    if other != data:
        with pytest.raises(CorruptRowsError):
            unpack(other)
    if more:
        with pytest.raises(CorruptRowsError):
            unpack(data + more)


@given(
    data=st.binary(max_size=200), behind_a_header=st.booleans(), n=st.integers(0, 2**32 - 1), k=st.integers(0, 65535)
)
@settings(deadline=None)
def test_anything_else_is_corrupt_and_nothing_worse(data: bytes, behind_a_header: bool, n: int, k: int) -> None:
    if behind_a_header:
        shape = struct.pack("<4sHHII", b"LFR2", 0, k, n, 1)
        data = shape + zlib.crc32(data, zlib.crc32(shape)).to_bytes(4, "little") + data
    with pytest.raises(CorruptRowsError):
        unpack(data)


def test_a_message_that_contradicts_its_packed_rows_is_refused() -> None:
    message = rows_to_proto(random_rows(0, 4, 5), "float16", packed=True)
    message.num_rows = 3
    with pytest.raises(CorruptRowsError, match="another shape"):
        rows_from_proto(message)


@pytest.mark.parametrize("cut", [0, 3, 19, 25, -1])
def test_a_cut_value_is_refused(cut: int) -> None:
    with pytest.raises(CorruptRowsError):
        unpack(pack(random_rows(0, 4, 5))[:cut])


@given(seed=st.integers(0, 1000), at=st.integers(0, 6), unmapped=st.booleans())
@settings(deadline=None)
def test_two_parts_are_the_whole_again(seed: int, at: int, unmapped: bool) -> None:
    whole = random_rows(seed, 6, 4, unmapped=unmapped)
    first, second = whole.part(0, at), whole.part(at, 6)
    assert (len(first), len(second), second.first_position) == (at, 6 - at, 1 + at)
    assert_same(join_rows([first, second]), whole, "float32")


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
    # By way of any k in between it is the same.
    for middle in range(k, 13):
        again = wide.narrowed(middle).narrowed(k)
        np.testing.assert_array_equal(again.ids, narrow.ids)
        np.testing.assert_allclose(again.tail_mass, narrow.tail_mass, atol=1e-5)


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


def test_an_undefined_encoding_is_named() -> None:
    with pytest.raises(ValueError, match="row_encoding is 7"):
        is_packed(7)  # type: ignore[arg-type]
    assert [is_packed(e) for e in pb.RowEncoding.values()] == [False, False, True]


def test_an_undefined_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="logprob_dtype is 7"):
        dtype_from_proto(7)  # type: ignore[arg-type]
    assert dtype_from_proto(pb.LOGPROB_DTYPE_UNSPECIFIED) == "float16"


def test_rows_of_different_width_are_joined_and_must_follow_one_another() -> None:
    wide, narrow = random_rows(0, 3, 4), random_rows(1, 2, 2, unmapped=True)
    moved = replace(narrow, first_position=wide.first_position + 3)
    both = join_rows([wide, moved])
    assert (both.top_k, len(both), both.first_position) == (4, 5, wide.first_position)
    assert both.counts.tolist() == [*wide.counts, *narrow.counts]
    np.testing.assert_array_equal(both.ids[3:, :2], narrow.ids)
    np.testing.assert_array_equal(both.tail_mass, np.concatenate([wide.tail_mass, narrow.tail_mass]))
    assert both.unmapped_mass is not None
    assert narrow.unmapped_mass is not None
    np.testing.assert_array_equal(both.unmapped_mass, [0, 0, 0, *narrow.unmapped_mass])
    with pytest.raises(ValueError, match="rows begin at position"):
        join_rows([wide, narrow])

"""Log-probabilities of ids that the caller chooses, beside a float64 forward pass that shares no code with them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from latentforge.gateway.backends.base import TeacherDescription
from latentforge.gateway.rpc.errors import ApiError
from latentforge.gateway.rpc.validation import check_can_score_candidates
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient


def expected(logprobs: Any, candidates: Any) -> Any:
    """Entry by entry: [rows, v] and ids [m] or [rows, m] to [rows, m]."""
    rows = [candidates] * len(logprobs) if np.ndim(candidates) == 1 else candidates
    return np.array([[row[token] for token in own] for row, own in zip(logprobs, rows, strict=True)])


@pytest.mark.parametrize("encoding", ["arrays", "packed"])
async def test_candidates_are_the_teachers_log_softmax_whatever_their_rank(
    running: Any, reference: Any, random_teacher: Path, encoding: Any
) -> None:
    random = np.random.default_rng(3)
    ids = random.integers(0, 300, 40).tolist()
    truth = reference(random_teacher, ids)
    # The least probable, one of the middle, one twice, and the widest id.
    per_row = np.stack([truth.argmin(1), truth.argsort(1)[:, 150], np.full(39, 7), np.full(39, 7), np.full(39, 299)], 1)
    for candidates in (per_row, [5, 299, 0]):
        scored = await running.client.score_sequence(ids, 4, candidates=candidates, row_encoding=encoding)
        assert scored.candidate_logprobs.dtype == np.float32
        np.testing.assert_allclose(scored.candidate_logprobs, expected(truth, candidates), atol=2e-4)
        np.testing.assert_array_equal(scored.rows.ids, (-truth).argsort(1)[:, :4])
        assert scored.provenance.revision == (await running.client.teacher()).revision


async def test_an_answer_is_never_one_for_other_candidates(running: Any, reference: Any, random_teacher: Path) -> None:
    ids = list(range(30))
    truth = reference(random_teacher, ids)
    client = running.client
    plain = await client.score(ids, 8, "float32")
    asked = [[1, 2], [2, 1], [1, 2, 3, 4], [[1, 2]] * 28 + [[9, 8]], [1, 2]]
    # One after another, so that a store or a memory could answer, and all at once, so that one in flight could.
    answers = [await client.score_sequence(ids, 8, candidates=each, dtype="float32") for each in asked]
    answers += await asyncio.gather(
        *(client.score_sequence(ids, 8, candidates=each, dtype="float32") for each in asked)
    )
    for scored, candidates in zip(answers, asked * 2, strict=True):
        np.testing.assert_allclose(scored.candidate_logprobs, expected(truth, candidates), atol=2e-4)
        np.testing.assert_allclose(scored.rows.logprobs, plain.logprobs, atol=1e-5)
    assert not any(scored.provenance.cache_hit for scored in answers[: len(asked)])
    # And what is kept holds nothing of them.
    again = await client.score_sequence(ids, 8, dtype="float32")
    assert again.candidate_logprobs is None
    assert again.provenance.cache_hit
    assert (await client.cache_stats()).entries <= 1


async def test_those_of_a_batch_stay_with_their_sequences(running: Any, reference: Any, random_teacher: Path) -> None:
    random = np.random.default_rng(5)
    lengths = [9, 2, 30, 30, 17, 5]
    sequences = [random.integers(0, 300, length).tolist() for length in lengths]
    candidates: list[Any] = [random.integers(0, 300, (length - 1, 1 + at)) for at, length in enumerate(lengths)]
    candidates[2], candidates[4] = [], [3]
    answers = {a.index: a async for a in running.client.score_batch(sequences, 3, candidates=candidates)}
    assert sorted(answers) == list(range(6))
    for index, ids in enumerate(sequences):
        truth, scored = reference(random_teacher, ids), answers[index]
        np.testing.assert_array_equal(scored.rows.ids, (-truth).argsort(1)[:, :3])
        if index == 2:
            assert scored.candidate_logprobs is None
        else:
            np.testing.assert_allclose(scored.candidate_logprobs, expected(truth, candidates[index]), atol=2e-4)
    # They came together.
    assert len(running.backend.scored) < len(sequences)


async def test_the_client_without_asyncio_gives_the_same(running: Any) -> None:
    def ask() -> Any:
        with SyncTeacherClient(running.target, timeout=30) as client:
            (batch,) = client.score_batch([[1, 2, 3]], 2, candidates=[[4, 5]])
            return client.score_sequence([1, 2, 3], 2, candidates=[4, 5]), batch

    one, other = await asyncio.to_thread(ask)
    np.testing.assert_allclose(one.candidate_logprobs, other.candidate_logprobs, atol=1e-6)
    assert one.candidate_logprobs.shape == (2, 2)


@pytest.mark.parametrize(
    ("candidates", "field", "words"),
    [
        (
            pb.Candidates(per_row=2, ids=[1, 2, 3]),
            "candidates.ids",
            ("has 3", "allowed are 2", "8, 2 for each of 4 rows"),
        ),
        (pb.Candidates(ids=[1]), "candidates.per_row", ("is 0", "1 to 64")),
        (pb.Candidates(per_row=65, ids=[0] * 65), "candidates.per_row", ("is 65", "1 to 64")),
        (pb.Candidates(per_row=1, ids=[300]), "candidates.ids[0]", ("is 300", "0 to 299")),
    ],
)
async def test_bad_candidates_name_field_value_and_what_is_allowed(
    running: Any, candidates: pb.Candidates, field: str, words: Any
) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=range(5), top_k=1, candidates=candidates)
    batch = pb.ScoreBatchRequest(
        tokenizer_fingerprint=fingerprint,
        top_k=1,
        sequences=[pb.TokenIds(ids=range(5)), pb.TokenIds(ids=range(6))],
        candidates=[candidates, pb.Candidates(per_row=1, ids=[1])],
    )
    async with grpc.aio.insecure_channel(running.target) as channel:
        stub = TeacherServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(request)
        answers = {answer.index: answer async for answer in stub.ScoreBatch(batch)}
        del batch.candidates[1]
        with pytest.raises(grpc.aio.AioRpcError) as uneven:
            await stub.ScoreBatch(batch).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(word in (caught.value.details() or "") for word in (f"{field}: ", *words)), caught.value.details()
    assert field.replace("candidates", "candidates[0]", 1) in answers[0].error.message
    assert len(answers[1].score.candidate_logprobs) == 5 * 4
    assert "candidates: has 1; allowed are none, or one for each of 2" in (uneven.value.details() or "")


async def test_a_teacher_that_cannot_say_refuses_with_what_can_be_done(running: Any) -> None:
    about: TeacherDescription = replace(running.backend.description, backend="vllm-remote", can_score_candidates=False)
    with pytest.raises(ApiError, match=r"vllm-remote.*larger top_k.*up to 64.*embedded or transformers") as caught:
        check_can_score_candidates(about)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert (await running.client.teacher()).can_score_candidates


async def test_a_gateway_that_passes_over_candidates_is_found_out(running: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("latentforge.gateway.rpc.validation.candidate_ids", lambda *arguments: None)
    with pytest.raises(TeacherError, match="does not know candidates"):
        await running.client.score_sequence([1, 2, 3], 2, candidates=[4])


async def test_candidates_that_are_no_ids_are_refused_before_they_are_sent(running: Any) -> None:
    for wrong in ([0.5], [-1], [[[1]]], [1 << 32]):
        with pytest.raises(ValueError, match="candidates are"):
            await running.client.score_sequence([1, 2, 3], 2, candidates=wrong)

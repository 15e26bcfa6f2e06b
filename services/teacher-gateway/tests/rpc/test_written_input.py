"""Scoring what is written: a text or a chat in the place of ids, and ids with how they are written."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient

CHAT = [("user", "Is <|im_end|> text?"), ("assistant", "Yes")]


@pytest.fixture
async def stub(running: Any) -> Any:
    async with grpc.aio.insecure_channel(running.target) as channel:
        yield TeacherServiceStub(channel)


async def test_a_text_and_a_chat_are_scored_as_their_ids_are(running: Any) -> None:
    client, tokenizer = running.client, running.backend.tokenizer
    text = "def main():<|endoftext|>\n"
    chat = [{"role": role, "content": content} for role, content in CHAT]
    cases: list[tuple[Any, bool, list[int]]] = [
        (text, False, tokenizer.encode(text)),
        (text, True, tokenizer.encode(text, parse_special_tokens=True)),
        (CHAT, False, tokenizer.encode_chat(chat)),
    ]
    assert cases[0][2] != cases[1][2]
    for prompt, parse, ids in cases:
        scored = await client.score_sequence(prompt, 5, parse_special_tokens=parse, dtype="float32")
        assert scored.token_ids == ids
        again = await client.score_sequence(ids, 5, dtype="float32")
        # One entry of the cache for both.
        assert again.provenance.cache_hit
        assert again.token_ids == []
        np.testing.assert_array_equal(scored.rows.ids, again.rows.ids)
        np.testing.assert_array_equal(scored.rows.realised_logprobs, again.rows.realised_logprobs)


async def test_a_scored_text_begins_with_the_tokenizers_bos(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.backend.tokenizer, "bos_id", 2)
    scored = await running.client.score_sequence("ab", 3)
    assert scored.token_ids == [2, *running.backend.tokenizer.encode("ab")]


@pytest.mark.parametrize("encoding", ["arrays", "packed"])
async def test_every_id_of_an_answer_comes_with_how_it_is_written(running: Any, encoding: Any) -> None:
    client, tokenizer = running.client, running.backend.tokenizer
    for _ in range(2):  # computed, then cached
        scored = await client.score_sequence("é<|pad|>", 3, token_strings=True, row_encoding=encoding)
        used = {*scored.token_ids, *scored.rows.ids.reshape(-1).tolist()}
        assert scored.token_strings.keys() == used
        assert scored.token_strings[tokenizer.encode("é")[0]] == "bytes:\\xc3"
        assert scored.token_strings[tokenizer.encode("<")[0]] == "<"
    asked = await client.score_sequence([70, 71], 1, candidates=[1, 299], token_strings=True)
    assert asked.token_strings[1] == "<|pad|>"
    assert asked.token_strings[299] == "token_id:299"
    assert (await client.score_sequence("ab", 3)).token_strings == {}


async def test_text_and_chats_need_no_fingerprint_and_ids_do(running: Any, stub: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hi")])
    assert (await stub.Score(pb.ScoreRequest(text="abc", top_k=2))).rows.num_rows == 2
    assert (await stub.Score(pb.ScoreRequest(chat=chat, top_k=2))).rows.num_rows > 2
    for prompt in ({"text": "abc"}, {"chat": chat}):
        messages = [m async for m in stub.Generate(pb.GenerateRequest(max_tokens=2, **prompt))]
        assert messages[-1].finish_reason
    ids = pb.TokenIds(ids=[1, 2])
    for call in (
        stub.Score(pb.ScoreRequest(token_ids=ids.ids, top_k=2)),
        stub.ScoreBatch(pb.ScoreBatchRequest(sequences=[ids], top_k=2)).read(),
        stub.Generate(pb.GenerateRequest(token_ids=ids, max_tokens=2)).read(),
        # What is set is checked.
        stub.Score(pb.ScoreRequest(text="abc", top_k=2, tokenizer_fingerprint="theirs")),
        stub.Generate(pb.GenerateRequest(text="abc", max_tokens=2, tokenizer_fingerprint="theirs")).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_ids_of_a_callers_own_tokenizer_are_refused_unless_it_is_the_teachers(running: Any) -> None:
    theirs = running.backend.tokenizer.fingerprint
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), max_tokens=1)
    async with TeacherClient(running.target, timeout=10, tokenizer_fingerprint="mine") as client:
        # GetTeacher's does not take the place of the caller's.
        assert (await client.teacher()).tokenizer_fingerprint == theirs
        calls: list[Any] = [
            client.score([1, 2], 2),
            client.score_sequence("ab", 2),
            client.detokenize([1]),
            anext(client.score_batch([[1, 2]], 2)),
            anext(client.generate(request)),
            anext(client.generate(pb.GenerateRequest(text="a", max_tokens=1))),
        ]
        for call in calls:
            with pytest.raises(TeacherError, match=f"'mine'.*{theirs}") as caught:
                await call
            assert caught.value.reason == "TOKENIZER_MISMATCH"
    async with TeacherClient(running.target, timeout=10, tokenizer_fingerprint=theirs) as client:
        assert len(await client.score([1, 2], 2)) == 1
    # A request's own is kept, and the caller's request is left as it was.
    await anext(running.client.generate(request))
    assert request.tokenizer_fingerprint == ""
    request.tokenizer_fingerprint = "mine"
    with pytest.raises(TeacherError, match="'mine'"):
        await anext(running.client.generate(request))


async def test_the_client_without_asyncio_scores_text(running: Any) -> None:
    def ask() -> Any:
        with SyncTeacherClient(running.target, timeout=10) as client:
            text = client.score_sequence("abc", 2, token_strings=True)
            (written, *_) = client.generate(pb.GenerateRequest(text="abc", max_tokens=1))
            return text, client.score_sequence(CHAT, 2), written

    text, chat, written = await asyncio.to_thread(ask)
    assert [text.token_strings[i] for i in text.token_ids] == ["a", "b", "c"]
    assert len(chat.rows) == len(chat.token_ids) - 1
    assert written.prompt_token_ids == text.token_ids


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.ScoreRequest(text="ab", token_ids=[1, 2], top_k=2), ("token_ids: is set, and so is text",)),
        (pb.ScoreRequest(text="a", top_k=2), ("text: has 1 tokens", "2 to 512")),
        (pb.ScoreRequest(chat=pb.Chat(), top_k=2), ("chat.messages: is empty",)),
        (pb.ScoreRequest(token_ids=[1, 2], top_k=2, parse_special_tokens=True), ("parse_special_tokens: is set",)),
        (pb.ScoreRequest(text="ab " * 180, top_k=2), ("text: has 540 tokens", "2 to 512")),
        (pb.ScoreRequest(text="x" * 40_000, top_k=2), ("text: has 40000 bytes",)),
    ],
)
async def test_bad_written_input_names_its_field(stub: Any, request_: pb.ScoreRequest, words: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Score(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(word in (caught.value.details() or "") for word in words), caught.value.details()

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from latentforge.gateway.backends.base import BackendError
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.wire import rows_from_proto
from latentforge.text import vocabulary
from latentforge.text.tokenizer import TextTokenizer

STDLIB_TEACHER = Path(__file__).parents[4] / "models" / "stdlib-teacher"


@pytest.fixture
async def stub(running: Any) -> Any:
    async with grpc.aio.insecure_channel(running.target) as channel:
        yield TeacherServiceStub(channel)


@contextmanager
def refused(code: grpc.StatusCode, *words: str, field: str | None = None) -> Iterator[Any]:
    """Expects a status, words in its message, and the field in google.rpc.BadRequest."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield caught
    error = caught.value
    assert error.code() is code, error.details()
    assert all(word in (error.details() or "") for word in words), error.details()
    if field is not None:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        detail = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(detail)
        assert field in [v.field for v in detail.field_violations]


async def test_the_teacher_says_what_it_is(running: Any) -> None:
    about = await running.client.teacher()
    assert (about.backend, about.model, about.quantization) == ("embedded", "tiny-random", "none")
    assert about.can_score
    assert about.can_generate
    assert (about.max_top_k, about.max_sequence_length, about.vocab_size) == (64, 512, 300)
    assert about.logprobs_mode == pb.LOGPROBS_MODE_RAW
    assert about.id_fidelity == pb.ID_FIDELITY_EXACT
    assert about.tokenizer_fingerprint == running.backend.tokenizer.fingerprint
    assert about.healthy
    assert "torch" in about.engine


async def test_rows_over_the_wire_are_aligned_with_a_known_distribution(run_gateway: Any, known_teacher: Any) -> None:
    token_ids = np.random.default_rng(0).integers(0, 64, 30)
    async with run_gateway(embedded_teacher_path=known_teacher.folder) as running:
        rows = await running.client.score(token_ids.tolist(), 6, "float32")
    for row in range(len(rows)):
        position = rows.first_position + row
        expected = known_teacher.logprobs[token_ids[position - 1]]
        np.testing.assert_array_equal(rows.ids[row], np.argsort(-expected)[:6])
        np.testing.assert_allclose(rows.logprobs[row], np.sort(expected)[::-1][:6], atol=1e-4)
        assert rows.realised_logprobs[row] == pytest.approx(expected[token_ids[position]], abs=1e-4)
        assert rows.realised_ranks[row] == 1 + (expected > expected[token_ids[position]]).sum()
    assert len(rows) == 29


async def test_rows_of_another_revision_than_expected_are_never_given(running: Any, stub: Any) -> None:
    about = await running.client.teacher()
    known = {"tokenizer_fingerprint": about.tokenizer_fingerprint, "top_k": 2}
    ids = pb.TokenIds(ids=[1, 2, 3])

    async def ask(revision: str) -> list[str]:
        """The revisions of all answers."""
        score = await stub.Score(pb.ScoreRequest(token_ids=ids.ids, expected_revision=revision, **known))
        request = pb.ScoreBatchRequest(sequences=[ids, ids], expected_revision=revision, **known)
        batch = [answer.score async for answer in stub.ScoreBatch(request)]
        generation = pb.GenerateRequest(token_ids=ids, max_tokens=2, expected_revision=revision, **known)
        generated = [message async for message in stub.Generate(generation)]
        return [answer.provenance.revision for answer in (score, *batch, generated[0])]

    assert await ask("") == await ask(about.revision) == [about.revision] * 4
    for method, request in (
        (stub.Score, pb.ScoreRequest(token_ids=ids.ids, expected_revision="other", **known)),
        (stub.ScoreBatch, pb.ScoreBatchRequest(sequences=[ids], expected_revision="other", **known)),
        (stub.Generate, pb.GenerateRequest(token_ids=ids, max_tokens=2, expected_revision="other", **known)),
    ):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "'other'", repr(about.revision), "tiny-random") as caught:
            call = method(request)
            await (call if method is stub.Score else call.read())
        status = rpc_status.from_call(caught.value)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "REVISION_MISMATCH"


async def test_the_second_answer_comes_from_the_cache_and_says_so(running: Any, stub: Any) -> None:
    about = await running.client.teacher()
    request = pb.ScoreRequest(tokenizer_fingerprint=about.tokenizer_fingerprint, token_ids=range(50), top_k=20)
    first = await stub.Score(request)
    second = await stub.Score(request)
    assert (first.provenance.cache_hit, second.provenance.cache_hit) == (False, True)
    assert first.rows == second.rows
    assert second.provenance.revision == about.revision
    assert second.provenance.milliseconds > 0
    stats = await running.client.cache_stats()
    # The second answer may come from the first while that is still on its way into the store.
    for _ in range(1000):
        if stats.entries:
            break
        await asyncio.sleep(0.01)
        stats = await running.client.cache_stats()
    assert (stats.kind, stats.healthy, stats.hits, stats.misses, stats.entries) == ("sqlite", True, 1, 1, 1)
    assert (stats.rows_from_cache, stats.rows_computed, stats.corrupt_entries, stats.errors) == (49, 49, 0, 0)
    assert stats.bytes > 0
    assert stats.saved_seconds > 0


async def test_other_weights_under_the_same_name_never_hit(
    run_gateway: Any, random_teacher: Path, tmp_path: Path
) -> None:
    import safetensors.numpy

    async with run_gateway() as running:
        await running.client.score(list(range(20)), 4)
    folder = tmp_path / "other" / random_teacher.name
    shutil.copytree(random_teacher, folder)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 2
    safetensors.numpy.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    async with run_gateway(embedded_teacher_path=folder) as running:
        assert (await running.client.teacher()).model == random_teacher.name
        await running.client.score(list(range(20)), 4)
        stats = await running.client.cache_stats()
        # Nobody waits for a write.
        for _ in range(1000):
            if stats.entries == 2:
                break
            await asyncio.sleep(0.01)
            stats = await running.client.cache_stats()
        assert (stats.hits, stats.misses, stats.entries) == (0, 1, 2)


@pytest.mark.parametrize(
    ("token_ids", "top_k", "field", "words"),
    [
        ([], 4, "token_ids", ("has 0 tokens", "2 to 512")),
        ([5], 4, "token_ids", ("has 1 tokens", "2 to 512")),
        ([5] * 513, 4, "token_ids", ("has 513 tokens", "2 to 512")),
        ([1, 2, 300], 4, "token_ids[2]", ("is 300", "0 to 299")),
        ([1, 2], 0, "top_k", ("is 0", "1 to 64")),
        ([1, 2], 65, "top_k", ("is 65", "1 to 64")),
    ],
)
async def test_bad_scoring_input_names_field_value_and_what_is_allowed(
    running: Any, stub: Any, token_ids: list[int], top_k: int, field: str, words: tuple[str, ...]
) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=token_ids, top_k=top_k)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field, *words, field=field):
        await stub.Score(request)


async def test_an_error_about_a_very_long_request_still_arrives(running: Any, stub: Any) -> None:
    messages = [pb.ChatMessage(role="ü" * 600, content="x")] * 50
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "chat.messages[0].role", field="chat.messages[0].role"):
        await stub.Tokenize(pb.TokenizeRequest(chat=pb.Chat(messages=messages)))


async def test_an_unknown_dtype_is_refused(running: Any, stub: Any) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[1, 2], top_k=1, logprob_dtype=9)  # type: ignore[arg-type]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "9", field="logprob_dtype"):
        await stub.Score(request)


async def test_ids_of_another_tokenizer_are_refused_with_both_fingerprints(running: Any, stub: Any) -> None:
    ours = running.backend.tokenizer.fingerprint
    calls = [
        stub.Score(pb.ScoreRequest(tokenizer_fingerprint="theirs", token_ids=[1, 2], top_k=4)),
        stub.Detokenize(pb.DetokenizeRequest(tokenizer_fingerprint="theirs", token_ids=[1])),
        stub.ScoreBatch(pb.ScoreBatchRequest(tokenizer_fingerprint="theirs", top_k=4)).read(),
        stub.Generate(pb.GenerateRequest(tokenizer_fingerprint="theirs", text="a", max_tokens=1)).read(),
    ]
    for call in calls:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "theirs", ours):
            await call


async def test_a_bad_sequence_of_a_batch_fails_alone(running: Any) -> None:
    sequences = [[1, 2, 3], [1], [4, 5, 999], [], [6, 7, 8, 9]]
    answers = {a.index: a async for a in running.client.score_batch(sequences, 3)}
    assert sorted(answers) == [0, 1, 2, 3, 4]
    assert [i for i, a in answers.items() if a.error is None and len(a.rows) == len(sequences[i]) - 1] == [0, 4]
    assert {answers[i].error.code for i in (1, 2, 3)} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert "sequences[2].ids[2]: is 999" in answers[2].error.message


async def test_a_batch_equals_its_sequences_one_by_one(running: Any, run_gateway: Any) -> None:
    sequences = [[(i * j + 7) % 300 for j in range(2 + 5 * i)] for i in range(20)]
    answers = {a.index: a.rows async for a in running.client.score_batch(sequences, 7, "float32")}
    async with run_gateway(cache_url="none") as other:
        for index, sequence in enumerate(sequences):
            rows = await other.client.score(sequence, 7, "float32")
            np.testing.assert_array_equal(rows.ids, answers[index].ids)
            np.testing.assert_allclose(rows.logprobs, answers[index].logprobs, atol=1e-4)


async def test_duplicates_in_a_batch_are_computed_once(running: Any) -> None:
    answers = [a async for a in running.client.score_batch([[1, 2, 3]] * 400, 3)]
    assert sorted(a.index for a in answers) == list(range(400))
    assert sum(map(len, running.backend.scored)) == 1


async def test_a_caller_who_leaves_takes_its_waiting_work_along(
    run_gateway: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    async with run_gateway(max_batch_tokens=10, max_tokens_in_flight=10) as running:
        await running.client.teacher()
        running.backend.gate.clear()
        leaving = asyncio.create_task(anext(running.client.score_batch([[i] * 10 for i in range(50)], 3)))
        await eventually(lambda: len(running.backend.scored) == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        # The cancellation has to travel to the gateway.
        await asyncio.sleep(0.2)
        running.backend.gate.set()
        assert len(await running.client.score([299] * 10, 3)) == 9
        assert len(running.backend.scored) <= 3


async def test_a_teacher_that_fails_is_an_internal_error_with_its_reason(running: Any) -> None:
    await running.client.teacher()
    running.backend.failure = BackendError("out of order")
    with pytest.raises(TeacherError, match="INTERNAL: the teacher failed: out of order"):
        await running.client.score([1, 2, 3], 3)
    answers = [a async for a in running.client.score_batch([[1, 2], [3, 4]], 3)]
    assert all(a.error is not None and "out of order" in a.error.message for a in answers)


async def test_a_dead_redis_costs_only_its_hits(run_gateway: Any, redis_server: Any) -> None:
    async with run_gateway(cache_url=redis_server.url) as running:
        first = await running.client.score([1, 2, 3], 3)
        await running.client.score([1, 2, 3], 3)
        assert (await running.client.cache_stats()).hits == 1
        redis_server.process.kill()
        redis_server.process.wait()
        again = await running.client.score([1, 2, 3], 3)
        np.testing.assert_array_equal(first.ids, again.ids)
        stats = await running.client.cache_stats()
        assert not stats.healthy
        assert stats.errors > 0


async def test_text_and_chats_become_ids_and_text_again(running: Any, stub: Any) -> None:
    text = "def f():\n    pass  # żółć"
    ids = await running.client.tokenize(text)
    assert await running.client.detokenize(ids) == text
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    answer = await stub.Tokenize(pb.TokenizeRequest(chat=chat))
    rendered = await running.client.detokenize(answer.token_ids)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "'robot'", field="chat.messages[0].role"):
        await stub.Tokenize(pb.TokenizeRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="robot")])))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "300", field="token_ids[1]"):
        await stub.Detokenize(
            pb.DetokenizeRequest(tokenizer_fingerprint=answer.tokenizer_fingerprint, token_ids=[1, 300])
        )


# The longest token of the tests' tokenizer is <|endoftext|>, and the teacher's longest sequence 512.
MOST_BYTES = 512 * len("<|endoftext|>")


def chat_of(*contents: str) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role="user", content=content) for content in contents])


async def test_texts_up_to_the_bound_are_tokenised(running: Any, stub: Any) -> None:
    ids = await running.client.tokenize("é" * (MOST_BYTES // 2))
    assert len(ids) == MOST_BYTES
    assert len((await stub.Tokenize(pb.TokenizeRequest(chat=chat_of("a" * MOST_BYTES)))).token_ids) > MOST_BYTES


async def test_the_bound_of_texts_is_a_setting(run_gateway: Any) -> None:
    async with run_gateway(max_text_bytes=10) as running, grpc.aio.insecure_channel(running.target) as channel:
        assert len(await running.client.tokenize("a" * 10)) == 10
        with pytest.raises(TeacherError, match="text: has 11 bytes; at most 10 are tokenised"):
            await running.client.tokenize("a" * 11)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "has 11 bytes", field="chat.messages"):
            await TeacherServiceStub(channel).Tokenize(pb.TokenizeRequest(chat=chat_of("a" * 11)))


async def test_the_size_of_requests_is_a_setting(run_gateway: Any) -> None:
    async with run_gateway(max_request_mb=1) as running:
        for size, code in ((1 << 19, "INVALID_ARGUMENT"), (1 << 21, "RESOURCE_EXHAUSTED")):
            with pytest.raises(TeacherError, match=code):
                await running.client.tokenize("a" * size)


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 8_000_000])
async def test_texts_beyond_the_bound_are_refused_before_they_are_tokenised(
    running: Any, stub: Any, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def encode(*arguments: Any, **options: Any) -> list[int]:
        raise AssertionError("tokenised")

    monkeypatch.setattr(TextTokenizer, "encode", encode)
    monkeypatch.setattr(TextTokenizer, "encode_chats", encode)
    fingerprint = running.backend.tokenizer.fingerprint
    text = "é" * (size // 2) + "a" * (size % 2)
    chat = chat_of(text[:10], text[10:])
    whole = size < 100_000
    said = (str(size), str(MOST_BYTES)) if whole else ()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *said, field="text" if whole else "input"):
        await stub.Tokenize(pb.TokenizeRequest(text=text))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *said, field="chat.messages" if whole else "input"):
        await stub.Tokenize(pb.TokenizeRequest(chat=chat))
    common = {"tokenizer_fingerprint": fingerprint, "max_tokens": 1}
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *said, field="text" if whole else "prompt"):
        await stub.Generate(pb.GenerateRequest(text=text, **common)).read()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *said, field="chat.messages" if whole else "prompt"):
        await stub.Generate(pb.GenerateRequest(chat=chat, **common)).read()


@pytest.mark.parametrize("number", [513, 1_000_000])
async def test_more_ids_or_messages_than_a_sequence_has_are_refused(running: Any, stub: Any, number: int) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "512", field="token_ids"):
        await stub.Detokenize(pb.DetokenizeRequest(tokenizer_fingerprint=fingerprint, token_ids=[65] * number))
    chat = pb.Chat(messages=[pb.ChatMessage()] * number)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "512", field="chat.messages" if number < 1000 else "input"):
        await stub.Tokenize(pb.TokenizeRequest(chat=chat))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "512", field="token_ids"):
        await stub.Score(pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[65] * number, top_k=1))


async def test_health_answers_while_a_text_is_tokenised(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    encode = running.backend.tokenizer.encode

    def held_up(text: str, **options: bool) -> list[int]:
        begun.set()
        assert go.wait(30)
        ids: list[int] = encode(text, **options)
        return ids

    monkeypatch.setattr(running.backend.tokenizer, "encode", held_up)
    tokenising = asyncio.ensure_future(running.client.tokenize("ab"))
    assert await asyncio.to_thread(begun.wait, 30)
    try:
        async with grpc.aio.insecure_channel(running.target) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not tokenising.done()
    finally:
        go.set()
    assert len(await tokenising) > 0


async def test_a_text_whose_caller_left_is_not_tokenised_further(
    run_gateway: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    begun, go, encode, pieces = threading.Event(), threading.Event(), vocabulary._encodings, []

    def held_up(tokenizer: Any, texts: Any) -> list[Any]:
        if len(texts[0]) > 1000:
            pieces.append(texts[0])
            begun.set()
            assert go.wait(30)
        return encode(tokenizer, texts)

    async with run_gateway(max_text_bytes=1 << 20) as running, grpc.aio.insecure_channel(running.target) as channel:
        monkeypatch.setattr(vocabulary, "_encodings", held_up)
        call = TeacherServiceStub(channel).Tokenize(pb.TokenizeRequest(text="one line of it\n" * 60_000), timeout=30)
        waiting = asyncio.create_task(call.wait_for_connection())
        assert await asyncio.to_thread(begun.wait, 30)
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        value = running.gateway.metrics.registry.get_sample_value
        await eventually(lambda: value("gateway_in_flight") == 0)
        go.set()
        await asyncio.to_thread(running.gateway._host._tokenising.shutdown, wait=True)
    assert len(pieces) == 1


async def test_a_text_is_continued_behind_the_tokenizers_bos(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (await running.client.teacher()).HasField("bos_id")
    monkeypatch.setattr(running.backend.tokenizer, "bos_id", 2)
    assert (await running.client.teacher()).bos_id == 2
    ids = await running.client.tokenize("ab")
    prompts: list[dict[str, Any]] = [{"text": "ab"}, {"text": ""}, {"token_ids": pb.TokenIds(ids=ids)}]
    for prompt, expected in zip(prompts, ([2, *ids], [2], ids), strict=True):
        request = pb.GenerateRequest(**prompt, max_tokens=1)
        messages = [message async for message in running.client.generate(request)]
        assert list(messages[0].prompt_token_ids) == expected


async def test_special_tokens_are_parsed_for_who_asks_for_it(running: Any, stub: Any) -> None:
    text = "x<|im_end|>"
    plain = await running.client.tokenize(text)
    parsed = await running.client.tokenize(text, parse_special_tokens=True)
    assert (len(plain), parsed[-1]) == (len(text), 3)
    assert await running.client.detokenize(plain) == await running.client.detokenize(parsed) == text
    for parse, prompt in ((False, plain), (True, parsed)):
        request = pb.GenerateRequest(text=text, max_tokens=1, parse_special_tokens=parse)
        messages = [message async for message in running.client.generate(request)]
        assert list(messages[0].prompt_token_ids) == prompt
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "goes with text only", field="parse_special_tokens"):
        await stub.Tokenize(pb.TokenizeRequest(chat=chat, parse_special_tokens=True))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text": ""}, "text"),
        ({"token_ids": pb.TokenIds(ids=[5]), "parse_special_tokens": True}, "parse_special_tokens"),
        ({"token_ids": pb.TokenIds(ids=[300])}, "token_ids[0]"),
        ({"token_ids": pb.TokenIds(ids=[5] * 512)}, "token_ids"),
        ({"chat": pb.Chat()}, "chat.messages"),
        ({"chat": pb.Chat(messages=[pb.ChatMessage(role="assistant", content="a")])}, "chat.messages[0].role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 512}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 65}, "n"),
        ({"top_k": 65}, "top_k"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logprob_dtype": 7}, "logprob_dtype"),
    ],
)
async def test_bad_generation_input_names_its_field(
    running: Any, stub: Any, changes: dict[str, Any], field: str
) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    prompt = {} if {"token_ids", "chat"} & changes.keys() else {"text": "a"}
    request = pb.GenerateRequest(**({"tokenizer_fingerprint": fingerprint, "max_tokens": 4} | prompt | changes))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field=field):
        await stub.Generate(request).read()


async def test_a_generation_without_prompt_is_refused(running: Any, stub: Any) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field="prompt"):
        await stub.Generate(pb.GenerateRequest(tokenizer_fingerprint=fingerprint, max_tokens=1)).read()


async def test_generated_rows_are_the_rows_that_score_gives(running: Any) -> None:
    request = pb.GenerateRequest(
        text="def ", max_tokens=40, temperature=1, seed=5, n=3, top_k=6, logprob_dtype=pb.LOGPROB_DTYPE_FLOAT32
    )
    ids: dict[int, list[int]] = {}
    parts: dict[int, list[Any]] = {}
    reasons: dict[int, int] = {}
    prompts: dict[int, list[int]] = {}
    async for message in running.client.generate(request):
        if message.prompt_token_ids:
            prompts[message.index] = list(message.prompt_token_ids)
            assert message.provenance.model == "tiny-random"
        ids.setdefault(message.index, []).extend(message.token_ids)
        parts.setdefault(message.index, []).append(rows_from_proto(message.rows))
        reasons[message.index] = message.finish_reason
    prompt = await running.client.tokenize("def ")
    assert prompts == dict.fromkeys(range(3), prompt)
    assert len({tuple(i) for i in ids.values()}) == 3
    for index, generated in ids.items():
        assert reasons[index] == (pb.FINISH_REASON_STOP if generated[-1] == 0 else pb.FINISH_REASON_LENGTH)
        scored = await running.client.score(prompt + generated, 6, "float32")
        position = len(prompt)
        for rows in parts[index]:
            assert rows.first_position == position
            at = slice(position - 1, position - 1 + len(rows))
            np.testing.assert_array_equal(rows.ids, scored.ids[at])
            np.testing.assert_allclose(rows.logprobs, scored.logprobs[at], atol=1e-3)
            np.testing.assert_allclose(rows.realised_logprobs, scored.realised_logprobs[at], atol=1e-3)
            np.testing.assert_array_equal(rows.realised_ranks, scored.realised_ranks[at])
            np.testing.assert_allclose(rows.tail_mass, scored.tail_mass[at], atol=1e-4)
            position += len(rows)
        assert position == len(prompt) + len(generated)


async def test_health_answers_while_the_teacher_computes(running: Any) -> None:
    scoring = asyncio.create_task(running.client.score(list(range(300)) + [7] * 200, 64))
    async with grpc.aio.insecure_channel(running.target) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await scoring


@pytest.mark.parametrize("dtype", [pb.LOGPROB_DTYPE_FLOAT16, pb.LOGPROB_DTYPE_FLOAT32])
async def test_packed_rows_are_the_same_rows_fresh_cached_narrowed_and_in_batches(
    running: Any, stub: Any, dtype: Any
) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    common = {"tokenizer_fingerprint": fingerprint, "logprob_dtype": dtype}
    packed = {**common, "row_encoding": pb.ROW_ENCODING_PACKED}
    for top_k in (9, 9, 4):
        fresh = await stub.Score(pb.ScoreRequest(token_ids=range(30), top_k=top_k, **packed))
        plain = await stub.Score(pb.ScoreRequest(token_ids=range(30), top_k=top_k, **common))
        assert fresh.rows.packed
        assert not fresh.rows.ids
        assert len(fresh.SerializeToString()) < len(plain.SerializeToString())
        for name, values in vars(rows_from_proto(plain.rows)).items():
            np.testing.assert_array_equal(values, vars(rows_from_proto(fresh.rows))[name])
    request = pb.ScoreBatchRequest(sequences=[pb.TokenIds(ids=range(i, i + 9)) for i in range(5)], top_k=3, **packed)
    answers = [answer async for answer in stub.ScoreBatch(request)]
    assert all(rows_from_proto(answer.score.rows).ids.shape == (8, 3) for answer in answers)


async def test_an_unknown_encoding_is_refused(running: Any, stub: Any) -> None:
    fingerprint = running.backend.tokenizer.fingerprint
    request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[1, 2], top_k=1, row_encoding=9)  # type: ignore[arg-type]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "9", field="row_encoding"):
        await stub.Score(request)


async def test_a_full_queue_is_resource_exhausted_with_a_time_to_come_again(
    run_gateway: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    limits = {"max_batch_tokens": 10, "max_tokens_in_flight": 10, "max_queued_tokens": 10}
    async with run_gateway(**limits) as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = TeacherServiceStub(channel)
        fingerprint = running.backend.tokenizer.fingerprint
        running.backend.gate.clear()

        def ask(first: int) -> Any:
            return stub.Score(
                pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[first] * 10, top_k=2), timeout=20
            )

        under_way = []
        for first in range(2):
            under_way.append(ask(first))
            await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(3)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.seconds >= 1
        running.backend.gate.set()
        for call in under_way:
            assert (await call).rows.num_rows == 9


async def test_one_batch_of_more_than_the_queue_holds_is_answered_whole(run_gateway: Any) -> None:
    limits = {"max_batch_tokens": 10, "max_tokens_in_flight": 10, "max_queued_tokens": 30, "cache_url": "none"}
    async with run_gateway(**limits) as running:
        # Without the client library, which would ask again.
        async with grpc.aio.insecure_channel(running.target) as channel:
            request = pb.ScoreBatchRequest(
                tokenizer_fingerprint=running.backend.tokenizer.fingerprint,
                sequences=[pb.TokenIds(ids=[i, *range(9)]) for i in range(60)],
                top_k=2,
            )
            answers = [answer async for answer in TeacherServiceStub(channel).ScoreBatch(request)]
        assert sorted(answer.index for answer in answers) == list(range(60))
        assert not any(answer.HasField("error") for answer in answers)


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_caller_who_leaves_stops_the_backend(
    running: Any, stub: Any, eventually: Callable[[Callable[[], bool]], Awaitable[None]], how: str
) -> None:
    running.backend.gate.clear()
    fingerprint = running.backend.tokenizer.fingerprint
    request = pb.ScoreRequest(tokenizer_fingerprint=fingerprint, token_ids=[1, 2, 3], top_k=2)
    call = stub.Score(request, timeout=0.5 if how == "deadline" else 30)
    task = asyncio.create_task(call.wait_for_connection())
    await eventually(lambda: len(running.backend.scored) == 1)
    if how == "cancelled":
        call.cancel()
    await eventually(lambda: running.backend.cancelled == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

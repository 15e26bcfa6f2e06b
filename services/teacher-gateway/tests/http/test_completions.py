import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece
from latentforge.teacher.v1 import teacher_pb2 as pb

IDS = [70, 104, 4, 111, 299, 70, 104]
OTHERS = [[9, 8, 7, 6], [5, 250, 30]]
TOLERANCE = 1e-4
SCORED: dict[str, Any] = {"prompt": [1, 2], "prompt_logprobs": 2, "max_tokens": 1}
UNSEEN: dict[str, Any] = {"max_tokens": 0, "echo": True}
ECHOED: dict[str, Any] = {"logprobs": 2, "echo": True, "max_tokens": 1, "temperature": 0}
NAMES = ("token_logprobs", "top_logprobs")


def rows_in(prompt_logprobs: list[Any]) -> list[dict[int, Any]]:
    assert prompt_logprobs[0] is None
    return [{int(i): entry for i, entry in row.items()} for row in prompt_logprobs[1:]]


def check_rows(prompt_logprobs: list[Any], ids: list[int], expected_nv: Any, k: int) -> None:
    """Every number of every row beside an independent forward: own token first, the others by rank."""
    rows = rows_in(prompt_logprobs)
    assert len(rows) == len(ids) - 1
    for row, own, expected_v in zip(rows, ids[1:], expected_nv, strict=True):
        assert next(iter(row)) == own
        assert len(row) == k + (row[own]["rank"] > k)
        assert [entry["rank"] for i, entry in row.items() if i != own] == [
            rank for rank in range(1, k + 1) if rank != row[own]["rank"]
        ]
        for i, entry in row.items():
            assert entry["logprob"] == pytest.approx(expected_v[i], abs=TOLERANCE)
            # Equally probable tokens have either order.
            assert (expected_v > expected_v[i] + TOLERANCE).sum() < entry["rank"]
            assert entry["rank"] <= (expected_v > expected_v[i] - TOLERANCE).sum()


@pytest.mark.parametrize("k", [0, 1, 20])
async def test_prompt_logprobs_are_those_of_an_independent_forward(
    http: Any, reference: Any, random_teacher: Path, k: int
) -> None:
    answer = await http.complete(prompt=[IDS, *OTHERS], max_tokens=1, prompt_logprobs=k)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice, ids in zip(answer["choices"], [IDS, *OTHERS], strict=True):
        check_rows(choice["prompt_logprobs"], ids, reference(random_teacher, ids), k)
        # A request for prompt_logprobs and one token, vLLM's fewest, is one for rows: nothing is written.
        assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("", "length", None)
    assert answer["usage"] == {"prompt_tokens": 14, "completion_tokens": 0, "total_tokens": 14}
    about = await http.running.client.teacher()
    assert (answer["model"], answer["system_fingerprint"]) == (about.model, about.revision)


async def test_a_prompt_as_long_as_the_teacher_scores_has_its_rows(http: Any) -> None:
    longest = (await http.running.client.teacher()).max_sequence_length
    ids = (IDS * longest)[:longest]
    # As vLLM's clients ask, whose prompts leave room for the token that vLLM writes: nobody wants it.
    answer = await http.complete(prompt=ids, max_tokens=1, prompt_logprobs=2, temperature=0)
    assert len(answer["choices"][0]["prompt_logprobs"]) == longest
    assert answer["usage"]["completion_tokens"] == 0


async def test_what_was_scored_once_is_not_scored_again_whoever_asks(http: Any) -> None:
    fields = {"prompt": [IDS, OTHERS[0]], "max_tokens": 0, "echo": True, "prompt_logprobs": 8}
    first = await http.client.post("/v1/completions", json=fields)
    assert first.headers["x-cache-hits"] == "0/2"
    http.running.backend.scored.clear()
    again = await http.client.post("/v1/completions", json={**fields, "prompt_logprobs": 3, "prompt": IDS})
    assert again.headers["x-cache-hits"] == "1/1"
    rows = await http.running.client.score(IDS, 8, dtype="float32")
    assert http.running.backend.scored == []
    wide, narrow = (rows_in(a.json()["choices"][0]["prompt_logprobs"]) for a in (first, again))
    for row, (of_eight, of_three) in enumerate(zip(wide, narrow, strict=True)):
        assert all(of_eight[i] == entry for i, entry in of_three.items())
        assert [of_eight[i]["logprob"] for i in rows.ids[row].tolist()] == rows.logprobs[row].tolist()


async def test_a_request_can_name_the_revision_that_it_wants_rows_of(http: Any) -> None:
    revision = (await http.running.client.teacher()).revision
    for expected, status in ((revision, 200), ("another", 409)):
        headers = {"x-expected-revision": expected}
        answer = await http.client.post("/v1/completions", json=SCORED, headers=headers)
        assert answer.status_code == status
    assert "another" in answer.json()["error"]["message"]
    assert revision in answer.json()["error"]["message"]


async def test_echo_and_logprobs_are_what_lm_evaluation_harness_reads(
    http: Any, reference: Any, random_teacher: Path
) -> None:
    """As its local-completions asks: ids, one token, greedily; it drops the token that was written."""
    prompts = [IDS, *OTHERS]
    fields = {"prompt": prompts, "model": "tiny-random", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    answer = await http.complete(**fields, echo=True)
    for choice, ids in zip(answer["choices"], prompts, strict=True):
        expected_nv = reference(random_teacher, [*ids, 0])
        logprobs = choice["logprobs"]
        own = [row[i] for row, i in zip(expected_nv, ids[1:], strict=False)]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:-1] == pytest.approx(own, abs=TOLERANCE)
        assert logprobs["token_logprobs"][-1] == pytest.approx(expected_nv[-1].max(), abs=TOLERANCE)
        greedy = [value == max(top.values()) for value, top in zip(*(logprobs[n][1:] for n in NAMES), strict=True)]
        assert greedy == [
            row.argmax() == i for row, i in zip(expected_nv, [*ids[1:], expected_nv[-1].argmax()], strict=True)
        ]
        assert all(len(logprobs[name]) == len(ids) + 1 for name in ("tokens", "text_offset"))
    http.running.backend.scored.clear()
    assert (await http.complete(**fields, echo=True))["choices"] == answer["choices"]
    assert http.running.backend.scored == []


async def test_the_token_behind_an_echoed_prompt_is_what_greedy_writing_gives(http: Any) -> None:
    echoed = await http.complete(prompt="ab", temperature=0, max_tokens=1, logprobs=2, echo=True, return_token_ids=True)
    written = await http.complete(prompt="ab", temperature=0, max_tokens=1, logprobs=2, return_token_ids=True)
    assert echoed["choices"][0]["token_ids"] == written["choices"][0]["token_ids"]
    last = {name: values[-1] for name, values in echoed["choices"][0]["logprobs"].items() if name in NAMES}
    assert last["token_logprobs"] == pytest.approx(
        written["choices"][0]["logprobs"]["token_logprobs"][0], abs=TOLERANCE
    )
    assert last["top_logprobs"] == pytest.approx(written["choices"][0]["logprobs"]["top_logprobs"][0], abs=TOLERANCE)


async def test_a_looked_up_token_reads_and_ends_as_a_written_one(http: Any) -> None:
    fields = {"prompt": [[i] for i in range(300)], "temperature": 0, "max_tokens": 1, "logprobs": 1}
    written, looked_up = [
        (await http.complete(**fields, **more, return_token_ids=True))["choices"]
        for more in ({}, {"prompt_logprobs": 1})
    ]
    seen = set()
    for one, other in zip(written, looked_up, strict=True):
        for name in ("token_ids", "text", "finish_reason"):
            assert one[name] == other[name], one
        token_id = one["token_ids"][0]
        seen.add(one["finish_reason"] if token_id < 4 else "byte" if token_id < 260 else "no token")
    # Among the likeliest are the end of text, parts of characters, and ids without a token.
    assert seen == {"stop", "byte", "no token"}


async def test_texts_are_tokenised_as_text_and_echoed(http: Any) -> None:
    texts = ["a<|im_end|>é", "b"]
    answer = await http.complete(prompt=texts, max_tokens=0, echo=True, logprobs=0, return_token_ids=True)
    assert [choice["text"] for choice in answer["choices"]] == texts
    for choice, text in zip(answer["choices"], texts, strict=True):
        assert choice["prompt_token_ids"] == http.running.backend.tokenizer.encode(text)
        assert choice["logprobs"]["tokens"][:1] == [text[0]]
    logprobs = answer["choices"][0]["logprobs"]
    # é is two tokens of half a character each.
    assert logprobs["tokens"][-2:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["text_offset"][-3:] == [10, 11, 11]
    assert all(
        list(top) == [token] for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True)
    )


async def test_tokens_can_be_named_by_their_ids(http: Any) -> None:
    answer = await http.complete(prompt=IDS, max_tokens=0, echo=True, logprobs=1, return_tokens_as_token_ids=True)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{i}" for i in IDS]
    assert all(name.startswith("token_id:") for top in logprobs["top_logprobs"][1:] for name in top)


async def test_one_token_alone_has_no_row(http: Any) -> None:
    answer = await http.complete(prompt=[[7], IDS], max_tokens=1, prompt_logprobs=2)
    assert answer["choices"][0]["prompt_logprobs"] == [None]
    assert len(answer["choices"][1]["prompt_logprobs"]) == len(IDS)


async def test_what_is_written_is_what_generate_writes(http: Any) -> None:
    fields: dict[str, Any] = {"max_tokens": 6, "temperature": 0.8, "top_p": 0.9, "seed": 3, "n": 2}
    answer = await http.complete(prompt=[IDS, OTHERS[0]], **fields, logprobs=3, return_token_ids=True)
    for at, ids in enumerate([IDS, OTHERS[0]]):
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), top_k=3, **fields)
        written: dict[int, list[int]] = {0: [], 1: []}
        async for message in http.running.client.generate(request):
            written[message.index] += message.token_ids
        for n in range(2):
            choice = answer["choices"][2 * at + n]
            assert choice["index"] == 2 * at + n
            assert choice["token_ids"] == written[n]
            assert len(choice["logprobs"]["tokens"]) == len(written[n])
            assert choice["prompt_token_ids"] == ids
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])


async def test_rows_of_a_prompt_and_a_continuation_go_together(http: Any, reference: Any, random_teacher: Path) -> None:
    answer = await http.complete(prompt=IDS, max_tokens=3, temperature=0, prompt_logprobs=4, logprobs=1, echo=True)
    choice = answer["choices"][0]
    check_rows(choice["prompt_logprobs"], IDS, reference(random_teacher, IDS), 4)
    assert len(choice["logprobs"]["tokens"]) == len(IDS) + 3


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({}, 400, None, "missing required field `prompt`"),
        ({"prompt": 3}, 400, "prompt", "is none; send a text, a list of texts, a list of ids"),
        ({"prompt": []}, 400, "prompt", "is none; send a text"),
        ({"prompt": {}}, 400, "prompt", "is none; send a text"),
        ({"prompt": ["a", 3]}, 400, None, "Expected `str`, got `int`"),
        ({"prompt": [[1, 2], "a"]}, 400, "prompt[1]", "is no list of ids: Expected `array`, got `str`"),
        ({"prompt": [1.5, 2]}, 400, None, "Expected `int`, got `float`"),
        (SCORED | {"prompt": [[1, 2], [3, "x"]]}, 400, "prompt[1]", "is no list of ids: Expected `int`, got `str`"),
        (SCORED | {"prompt": [[1, 2], [3, 300]]}, 400, "prompt[1][1]", "ids are 0 to 299"),
        (SCORED | {"prompt": [1, -2]}, 400, "prompt[1]", "is -2; ids are 0 to 299"),
        (SCORED | {"prompt": [1, 2**70]}, 400, "prompt[1]", "ids are 0 to 299"),
        (UNSEEN | {"prompt": [[999999]]}, 400, "prompt[0][0]", "is 999999; ids are 0 to 299"),
        (UNSEEN | {"prompt": [[-5, 3]]}, 400, "prompt[0][0]", "is -5; ids are 0 to 299"),
        (UNSEEN | {"prompt": [5, 300]}, 400, "prompt[1]", "is 300; ids are 0 to 299"),
        (SCORED | {"prompt": [[7], [300]]}, 400, "prompt[1][0]", "is 300; ids are 0 to 299"),
        ({"prompt": [[5, 6], [5, 99999]]}, 400, "prompt[1][1]", "is 99999; ids are 0 to 299"),
        ({"prompt": [[5, 6], []]}, 400, "prompt[1]", "has no tokens"),
        (UNSEEN | {"prompt": "a", "n": 65}, 400, "n", "is 65; allowed are 1 to 64"),
        (SCORED | {"n": 65}, 400, "n", "is 65; allowed are 1 to 64"),
        (SCORED | {"prompt": [[]]}, 400, "prompt[0]", "has 0 tokens; allowed are 2 to 512"),
        (SCORED | {"prompt": [7] * 513}, 400, "prompt", "has 513 tokens"),
        (ECHOED | {"prompt": [7] * 512}, 400, "prompt", "1 to 511"),
        (SCORED | {"prompt_logprobs": 65}, 400, "prompt_logprobs", "0 to 64 (MAX_TOP_K)"),
        (SCORED | {"prompt_logprobs": -1}, 400, "prompt_logprobs", "is -1"),
        (SCORED | {"temperature": 0.7}, 400, "temperature", "is 0.7"),
        ({"prompt": [1, 2], "logprobs": 65}, 400, "logprobs", "is 65"),
        ({"prompt": [1, 2], "temperature": 101}, 400, "temperature", "is 101"),
        ({"prompt": [1, 2], "top_p": 0}, 400, "top_p", "is 0"),
        ({"prompt": [1, 2], "max_tokens": 0}, 400, "max_tokens", "set echo, logprobs or prompt_logprobs"),
        ({"prompt": [1, 2], "max_tokens": -1}, 400, "max_tokens", "is -1"),
        ({"prompt": [1, 2], "max_tokens": 511}, 400, "max_tokens", "allowed are 1 to 510"),
        ({"prompt": [1, 2], "n": 0}, 400, "n", "is 0"),
        ({"prompt": [1, 2], "n": 65}, 400, "n", "is 65"),
        ({"prompt": [1, 2], "seed": -1}, 400, "seed", "is -1"),
        ({"prompt": [1, 2], "best_of": 2}, 400, "best_of", "is 2"),
        ({"prompt": [1, 2], "stream": True}, 400, "stream", "is True"),
        ({"prompt": [1, 2], "logit_bias": {"3": 5}}, 400, "logit_bias", "leave it out"),
        ({"prompt": [1, 2], "repetition_penalty": 1.1}, 400, "repetition_penalty", "is 1.1"),
        ({"prompt": [1, 2], "include_stop_str_in_output": True}, 400, "include_stop_str_in_output", "leave it out"),
        ({"prompt": [1, 2], "skip_special_tokens": False}, 400, "skip_special_tokens", "is False"),
        ({"prompt": [1, 2], "repetition_detection": {"min_count": 2}}, 400, "repetition_detection", "leave it out"),
        ({"prompt": [1, 2], "thinking_token_budget": 0}, 400, "thinking_token_budget", "is 0"),
        ({"prompt": [1, 2], "vllm_xargs": {"a": 1}}, 400, "vllm_xargs", "leave it out"),
        ({"prompt": "a" * 9000}, 400, "prompt", "has 9000 bytes"),
        ({"prompt": [1, 2], "model": "gpt-4"}, 404, "model", "serves tiny-random only"),
    ],
)
async def test_what_is_wrong_is_named(http: Any, fields: Any, status: int, param: str | None, words: str) -> None:
    answer = await http.client.post("/v1/completions", json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert http.running.backend.scored == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"prompt": [1, 2}', b'{"prompt": "\\ud800"}'])
async def test_what_is_no_json_is_refused(http: Any, body: bytes) -> None:
    answer = await http.client.post("/v1/completions", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True, "echo": True, "max_new_tokens": 0, "top_logprobs": 4, "sampling_params": {"max_tokens": 0}},
        {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0, "stream": False, "logit_bias": None, "user": "me"},
        {"repetition_penalty": 2.0, "max_tokens": 1},
        {"max_tokens": 2, "skip_special_tokens": True, "include_stop_str_in_output": False, "vllm_xargs": {}},
    ],
)
async def test_what_changes_nothing_is_let_pass(http: Any, fields: Any) -> None:
    """Fields at their defaults, those for text where none is written, and those that vLLM does not know either."""
    answer = await http.complete(**{"prompt": IDS, "prompt_logprobs": 4, "temperature": 1.0} | fields)
    assert len(rows_in(answer["choices"][0]["prompt_logprobs"])) == len(IDS) - 1


async def test_an_answer_that_would_not_fit_is_refused_before_anything_is_scored(
    http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.http.scores.MAX_ANSWER_BYTES", 2**20)
    prompts = [[i % 300] * 500 for i in range(8)]
    answer = await http.client.post("/v1/completions", json={"prompt": prompts, "prompt_logprobs": 20, "max_tokens": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt_logprobs"
    assert http.running.backend.scored == []


async def test_what_is_written_is_bounded_for_all_prompts_together_before_anything_is_computed(
    http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.http.scores.MAX_ANSWER_BYTES", 2**20)
    fields = {"prompt": [[5]] * 64, "max_tokens": 20, "logprobs": 20, "echo": True, "n": 2}
    assert (await http.client.post("/v1/completions", json=fields | {"max_tokens": 4, "n": 1})).status_code == 200
    answer = await http.client.post("/v1/completions", json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "max_tokens")
    assert "is 20 for each of 64 prompts, n = 2 times" in error["message"]
    assert "about 3 MiB; at most 1 are allowed" in error["message"]
    assert http.running.backend.scored == []


async def test_others_continuations_come_between_those_of_a_request_with_many_prompts(
    run_http: Any, eventually: Any
) -> None:
    async with run_http(max_tokens_in_flight=64) as http:
        backend, gate, begun = http.running.backend, asyncio.Event(), []
        inner = backend.generate

        async def generate(request: Any) -> Any:
            begun.append(request.prompt_ids.tolist())
            if begun[-1] != IDS[:2]:
                await gate.wait()
            async for piece in inner(request):
                yield piece

        backend.generate = generate
        many = asyncio.create_task(http.complete(prompt=[[i] for i in range(40)], max_tokens=4, return_token_ids=True))
        await eventually(lambda: bool(begun))
        other = await asyncio.wait_for(http.complete(prompt=IDS[:2], max_tokens=1), 10)
        assert other["usage"]["completion_tokens"] == 1
        assert len(begun) <= 9
        gate.set()
        answer = await many
        assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[i] for i in range(40)]
        assert sorted(begun) == sorted([[i] for i in range(40)] + [IDS[:2]])


async def test_a_prompt_that_cannot_be_continued_is_refused_before_the_others_are(
    http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(http.running.backend, "generate", begun.append)
    fields = {"prompt": [[5]] * 20 + [[300]], "max_tokens": 2}
    assert (await http.client.post("/v1/completions", json=fields)).status_code == 400
    assert begun == []


@pytest.mark.parametrize(
    ("prompt", "n", "param"),
    [("a\u20ac" * 250, 51, "echo"), ([67] * 500, 51, "echo"), ([[67] * 250] * 2, 20, "return_token_ids")],
)
async def test_an_echo_that_would_not_fit_is_refused_too(
    http: Any, monkeypatch: pytest.MonkeyPatch, prompt: Any, n: int, param: str
) -> None:
    monkeypatch.setattr("latentforge.gateway.http.scores.MAX_ANSWER_BYTES", 500 * 50)
    fields = UNSEEN | {"prompt": prompt, "return_token_ids": param != "echo"}
    assert len((await http.complete(**fields | {"n": 8}))["choices"]) >= 8
    answer = await http.client.post("/v1/completions", json=fields | {"n": n})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_full_queue_is_429_with_a_time_to_come_back(run_http: Any, eventually: Any) -> None:
    limits = {"max_batch_tokens": 10, "max_tokens_in_flight": 10, "max_queued_tokens": 10, "cache_url": "none"}
    async with run_http(**limits) as http:
        http.running.backend.gate.clear()
        asked = []
        for i in range(2):
            asked.append(asyncio.create_task(http.complete(**SCORED | {"prompt": [i] * 10})))
            await asyncio.sleep(0.1)
        refused = await http.client.post("/v1/completions", json=SCORED | {"prompt": [9] * 10})
        http.running.backend.gate.set()
        await asyncio.gather(*asked)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "MAX_QUEUED_TOKENS" in refused.json()["error"]["message"]


async def test_who_hangs_up_is_not_computed_for(http: Any, eventually: Any) -> None:
    http.running.backend.gate.clear()
    asked = asyncio.create_task(http.complete(prompt=IDS, max_tokens=1, prompt_logprobs=1))
    await eventually(lambda: len(http.running.backend.scored) == 1)
    asked.cancel()
    await eventually(lambda: http.running.backend.cancelled == 1)


async def test_a_sequence_that_the_teacher_fails_on_is_named(http: Any, caplog: pytest.LogCaptureFixture) -> None:
    http.running.backend.refused[9] = BackendError("its log-probabilities are NaN", FailureKind.BROKEN)
    answer = await http.client.post(
        "/v1/completions", json={"prompt": [IDS, OTHERS[0]], "max_tokens": 1, "prompt_logprobs": 1}
    )
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["message"] == "the teacher failed: its log-probabilities are NaN (sequence 1)"
    assert (error["type"], error["code"]) == ("server_error", "teacher_broken")
    assert "the teacher failed: its log-probabilities are NaN" in caplog.messages


@pytest.mark.parametrize("kind", [FailureKind.BROKEN, FailureKind.REFUSED])
async def test_a_prompt_that_the_teacher_cannot_continue_is_named(
    http: Any, caplog: pytest.LogCaptureFixture, kind: FailureKind
) -> None:
    plain = http.running.backend.generate

    def generate(request: ContinuationRequest) -> AsyncIterator[Piece]:
        if request.prompt_ids.tolist() == OTHERS[0]:
            raise BackendError("the upstream says so", kind)
        pieces: AsyncIterator[Piece] = plain(request)
        return pieces

    http.running.backend.generate = generate
    answer = await http.client.post("/v1/completions", json={"prompt": [IDS, OTHERS[0]], "max_tokens": 2})
    assert answer.json()["error"]["message"] == "the teacher failed: the upstream says so (sequence 1)"
    # A refusal may quote what was sent.
    assert ("the teacher failed: the upstream says so" in caplog.messages) == (kind is FailureKind.BROKEN)


async def test_log_probabilities_of_minus_infinity_are_vllms(http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = http.running.backend.inner

    async def score(sequences: Any, top_k: int) -> Any:
        rows = await type(inner).score(inner, sequences, top_k)
        for one in rows:
            one.logprobs[:, -1] = -np.inf
            one.realised_logprobs[0] = -np.inf
        return rows

    monkeypatch.setattr(inner, "score", score)
    answer = await http.complete(prompt=IDS, max_tokens=1, prompt_logprobs=2)
    rows = rows_in(answer["choices"][0]["prompt_logprobs"])
    assert rows[0][IDS[1]]["logprob"] == -9999.0
    assert all(math.isfinite(entry["logprob"]) for row in rows for entry in row.values())


async def test_openais_client_reads_answers_and_errors(http: Any) -> None:
    url = f"{http.client.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        [model] = (await client.models.list()).data
        answer = await client.completions.create(
            model=model.id, prompt=IDS, max_tokens=0, echo=True, logprobs=2, extra_body={"prompt_logprobs": 2}
        )
        assert answer.choices[0].logprobs is not None
        assert len(answer.choices[0].logprobs.tokens or []) == len(IDS)
        with pytest.raises(openai.BadRequestError, match="max_tokens: is 9999"):
            await client.completions.create(model=model.id, prompt=IDS, max_tokens=9999)
        with pytest.raises(openai.NotFoundError, match="serves tiny-random only"):
            await client.completions.create(model="another", prompt=IDS)

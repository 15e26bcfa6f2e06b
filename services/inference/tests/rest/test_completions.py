import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latentforge.inference.rest import completions
from latentforge.inference.rest.logprobs import token_text

COMPLETIONS = "/v1/completions"
PROMPTS = ["", "a", "def f(", "x = [1,", "# é"]


def expected_logprobs(api: Any, prompt_ids: list[int], ids: list[int]) -> torch.Tensor:
    """Log probabilities [n, V] in place of each token of a prompt and its continuation, from one pass over all of it.

    Chunks end where the prompt does, since pads are put before it.
    """
    model = api.snapshot.model
    k, pad_id = model.chunk_size, model.student.config.pad_id
    pads, text = -len(prompt_ids) % k, [*prompt_ids, *ids]
    padded = [pad_id] * pads + text
    # What is behind the text cannot be seen from it.
    padded += [0] * (-len(padded) % k)
    with torch.no_grad():
        logits = model.logits(torch.tensor(padded).view(1, -1, k)).logits[0].flatten(0, 1).double()
    # Which is never written.
    logits[:, pad_id] = -torch.inf
    found: torch.Tensor = logits[pads : pads + len(text)].log_softmax(-1)
    return found


def joined(events: list[Any], index: int = 0) -> dict[str, Any]:
    """A choice of a stream as the whole answer has it."""
    parts = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    assert all(part["finish_reason"] is None for part in parts[:-1])
    logprobs = None
    if parts[0]["logprobs"] is not None:
        logprobs = {
            name: None if first is None else [entry for part in parts for entry in part["logprobs"][name]]
            for name, first in parts[0]["logprobs"].items()
        }
    return {
        "index": index,
        "text": "".join(part["text"] for part in parts),
        "token_ids": [i for part in parts for i in part["token_ids"]],
        "logprobs": logprobs,
        "finish_reason": parts[-1]["finish_reason"],
    }


def test_a_text_is_continued_in_openais_shape(api: Any) -> None:
    answer = api.post(COMPLETIONS, model="latentforge", prompt="import os", seed=3)
    [choice] = answer["choices"]
    assert answer["object"] == "text_completion"
    assert answer["model"] == "demo/step-00000001"
    assert answer["system_fingerprint"] == f"demo/step-00000001@{api.snapshot.digest[:12]}"
    assert answer["id"].startswith("cmpl-")
    assert len(choice["token_ids"]) == 16
    assert choice["text"] == api.snapshot.decode(choice["token_ids"])
    assert choice["finish_reason"] == "length"
    prompt_tokens = len(api.snapshot.encode("import os"))
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 16,
        "total_tokens": prompt_tokens + 16,
    }
    assert answer["choices"] == api.post(COMPLETIONS, prompt="import os", seed=3)["choices"]


def test_ids_are_continued_as_the_text_that_they_are(api: Any) -> None:
    ids = api.snapshot.encode("def f(")
    texts = api.post(COMPLETIONS, prompt=["def f(", "a"], temperature=0)
    assert [choice["index"] for choice in texts["choices"]] == [0, 1]
    listed = api.post(COMPLETIONS, prompt=[ids, api.snapshot.encode("a")], temperature=0)
    assert listed["choices"] == texts["choices"]
    assert api.post(COMPLETIONS, prompt=ids, temperature=0)["choices"] == texts["choices"][:1]
    assert texts["usage"]["prompt_tokens"] == len(ids) + 1


def test_greedy_texts_are_the_same_together_as_alone(shipped: Any) -> None:
    body = {"temperature": 0, "max_tokens": 40}
    alone = [shipped.post(COMPLETIONS, prompt=p, **body)["choices"][0]["token_ids"] for p in PROMPTS]
    together = shipped.post(COMPLETIONS, prompt=PROMPTS, **body)["choices"]
    assert [choice["token_ids"] for choice in together] == alone
    assert len(set(map(tuple, alone))) == len(PROMPTS)


def test_each_of_n_choices_has_the_next_seed(api: Any) -> None:
    several = api.post(COMPLETIONS, prompt=["a", "b"], n=3, seed=7, best_of=3)
    assert several["seed"] == 7
    assert [choice["index"] for choice in several["choices"]] == list(range(6))
    for choice in several["choices"]:
        alone = api.post(COMPLETIONS, prompt="ab"[choice["index"] // 3], seed=7 + choice["index"])
        assert alone["choices"][0]["token_ids"] == choice["token_ids"]
    assert len({tuple(choice["token_ids"]) for choice in several["choices"]}) == 6
    unseeded = api.post(COMPLETIONS, prompt="a")
    again = api.post(COMPLETIONS, prompt="a", seed=unseeded["seed"])
    assert again["choices"] == unseeded["choices"]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"n": 3, "seed": 1},
        {"prompt": PROMPTS, "n": 2, "logprobs": 2},
        {"echo": True, "logprobs": 3},
        {"echo": True, "max_tokens": 0, "logprobs": 1},
        {"echo": True, "max_tokens": 0},
        {"stop": ["f", "zz"], "max_tokens": 60, "n": 4, "logprobs": 0},
    ],
    ids=json.dumps,
)
def test_a_stream_says_what_the_whole_answer_says(api: Any, how: dict[str, Any]) -> None:
    body = {"prompt": "def f(", "max_tokens": 33, "seed": 5, **how}
    whole = api.post(COMPLETIONS, **body)
    events = api.events(COMPLETIONS, **body, stream_options={"include_usage": True})
    assert {event["id"] for event in events} == {events[0]["id"]}
    assert [joined(events, index) for index in range(len(whole["choices"]))] == whole["choices"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    assert all(len(event["choices"]) == 1 for event in events[:-1])


def test_an_event_is_a_step(api: Any) -> None:
    events = api.events(COMPLETIONS, prompt="def", max_tokens=10, temperature=0)
    assert [len(event["choices"][0]["token_ids"]) for event in events] == [4, 4, 2]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "length"]


def test_log_probabilities_are_teacher_forced_whatever_the_sampling(api: Any) -> None:
    how = {"temperature": 2.5, "top_k": 40, "frequency_penalty": 1.5, "logit_bias": {"70": 3}}
    answer = api.post(COMPLETIONS, prompt="def f(", max_tokens=30, seed=1, logprobs=4, **how)
    [choice] = answer["choices"]
    prompt_ids, ids, said = api.snapshot.encode("def f("), choice["token_ids"], choice["logprobs"]
    expected = expected_logprobs(api, prompt_ids, ids)[len(prompt_ids) :]
    own = expected.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(said["token_logprobs"], dtype=torch.float64), own, atol=1e-4)
    assert said["tokens"] == [token_text(api.snapshot, i) for i in ids]
    for row, token_id, alternatives in zip(expected, ids, said["top_logprobs"], strict=True):
        top = row.topk(4).indices.tolist()
        assert alternatives.keys() == {token_text(api.snapshot, i) for i in [*top, token_id]}
        for i in top:
            assert alternatives[token_text(api.snapshot, i)] == pytest.approx(float(row[i]), abs=1e-4)


def test_an_echoed_prompt_is_scored_but_for_its_first_token(api: Any) -> None:
    ids = api.snapshot.encode("def main():\n    é = 1")
    answer = api.post(COMPLETIONS, prompt=ids, max_tokens=1, echo=True, logprobs=1, temperature=0)
    [choice] = answer["choices"]
    said = choice["logprobs"]
    assert choice["token_ids"][:-1] == ids
    assert said["token_logprobs"][0] is said["top_logprobs"][0] is None
    expected = expected_logprobs(api, ids, choice["token_ids"][len(ids) :])
    own = expected.gather(1, torch.tensor(choice["token_ids"])[:, None])[1:, 0]
    assert torch.allclose(torch.tensor(said["token_logprobs"][1:], dtype=torch.float64), own, atol=1e-4)
    # As lm-evaluation-harness finds out whether a token is the likeliest.
    greedy = expected.argmax(-1)
    for at in range(1, len(choice["token_ids"])):
        is_greedy = said["token_logprobs"][at] == max(said["top_logprobs"][at].values())
        assert is_greedy == (int(greedy[at]) == choice["token_ids"][at])
    assert answer["usage"]["completion_tokens"] == 1


def test_a_prompt_can_be_scored_and_nothing_written(api: Any) -> None:
    whole = api.post(COMPLETIONS, prompt="def f(x)", max_tokens=8, echo=True, logprobs=0, seed=1)["choices"][0]
    scored = api.post(COMPLETIONS, prompt="def f(x)", max_tokens=0, echo=True, logprobs=0)
    [choice] = scored["choices"]
    num = len(api.snapshot.encode("def f(x)"))
    assert (choice["text"], choice["finish_reason"]) == ("def f(x)", "length")
    assert choice["token_ids"] == whole["token_ids"][:num]
    assert choice["logprobs"]["token_logprobs"] == whole["logprobs"]["token_logprobs"][:num]
    assert choice["logprobs"]["top_logprobs"] is None
    assert scored["usage"]["completion_tokens"] == 0
    # The whole context has no room for a step, and needs none.
    longest = [65] * api.snapshot.max_context_tokens
    full = api.post(COMPLETIONS, prompt=longest, max_tokens=0, echo=True, logprobs=0)["choices"][0]
    assert len(full["logprobs"]["token_logprobs"]) == len(longest)
    assert (
        api.post(COMPLETIONS, prompt="", max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]["tokens"] == []
    )


def test_text_offsets_say_where_tokens_begin(api: Any) -> None:
    prompt = "x = 'é€🙂' "
    choice = api.post(COMPLETIONS, prompt=prompt, max_tokens=40, echo=True, logprobs=0, seed=2)["choices"][0]
    text, said = choice["text"], choice["logprobs"]
    assert text.startswith(prompt)
    assert len(said["text_offset"]) == len(said["tokens"]) == len(choice["token_ids"])
    ends = [*said["text_offset"][1:], len(text)]
    whole = [(t, text[a:b]) for t, a, b in zip(said["tokens"], said["text_offset"], ends, strict=True)]
    assert sum(token == part for token, part in whole) > 15
    # Tokens that are parts of characters share theirs.
    assert all(token == part or token.startswith("bytes:") or "\ufffd" in part for token, part in whole)
    alone = api.post(COMPLETIONS, prompt=prompt, max_tokens=40, logprobs=0, seed=2)["choices"][0]["logprobs"]
    num = len(api.snapshot.encode(prompt))
    assert alone["text_offset"] == [offset - len(prompt) for offset in said["text_offset"][num:]]


def test_a_stop_string_ends_the_text_and_never_shows_in_a_stream(api: Any) -> None:
    whole = api.post(COMPLETIONS, prompt="def", max_tokens=80, seed=1)["choices"][0]
    word = whole["text"][30:33]
    body = {"prompt": "def", "max_tokens": 80, "seed": 1, "stop": [word, "never there"]}
    cut = api.post(COMPLETIONS, **body)["choices"][0]
    assert cut["text"] == whole["text"][: whole["text"].index(word)]
    assert cut["finish_reason"] == "stop"
    assert whole["token_ids"][: len(cut["token_ids"])] == cut["token_ids"]
    told = ""
    for event in api.events(COMPLETIONS, **body):
        told += event["choices"][0]["text"]
        assert word not in told
    assert told == cut["text"]


def test_stop_ids_end_the_text_and_are_no_part_of_it(api: Any) -> None:
    ids = api.post(COMPLETIONS, prompt="def", max_tokens=40, seed=1)["choices"][0]["token_ids"]
    end = next(i for at, i in enumerate(ids) if at > 9 and i not in ids[:at])
    answer = api.post(COMPLETIONS, prompt="def", max_tokens=40, seed=1, stop_token_ids=[end])
    [choice] = answer["choices"]
    assert choice["token_ids"] == ids[: ids.index(end)]
    assert choice["text"] == api.snapshot.decode(choice["token_ids"])
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])


def test_an_end_of_text_ends_it_its_log_probability_is_told_and_it_can_be_ignored(api: Any) -> None:
    eos = api.snapshot.decoding.eos_id
    body = {"prompt": "def", "max_tokens": 1, "temperature": 0, "logit_bias": {str(eos): 100}, "echo": True}
    ended = api.post(COMPLETIONS, **body, logprobs=1)
    [choice] = ended["choices"]
    prompt_ids = api.snapshot.encode("def")
    assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("def", prompt_ids, "stop")
    # A harness that takes the last one off must not take one of the prompt's.
    assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert len(choice["logprobs"]["token_logprobs"]) == len(prompt_ids) + 1
    assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(
        float(expected_logprobs(api, prompt_ids, [eos])[-1, eos]), abs=1e-4
    )
    assert ended["usage"]["completion_tokens"] == 0
    ignored = api.post(COMPLETIONS, **body | {"max_tokens": 6}, ignore_eos=True)["choices"][0]
    assert ignored["token_ids"][-6:] == [eos] * 6
    assert (ignored["text"], ignored["finish_reason"]) == ("def", "length")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"prompt": []}, "prompt", "send a text, a list of texts"),
        ({"prompt": ["a", [1]]}, "prompt", "not both"),
        ({"prompt": [[None]]}, "prompt", "holds None"),
        ({"prompt": [1, True]}, "prompt", "holds True"),
        ({"prompt": [300]}, "prompt", "prompt names id 300, but demo/step-00000001 has ids from 0 to 299"),
        ({"prompt": ["\ud800"]}, "prompt", "half of a surrogate pair"),
        ({"prompt": "x", "suffix": "y"}, "suffix", "leave it out"),
        ({"prompt": "x", "best_of": 2}, "best_of", "best_of is 2, but n is 1"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "set echo"),
        ({"prompt": "x", "max_tokens": 2000}, "max_tokens", "has room for 1020 of its 1024; ask for at most 1020"),
        ({"prompt": "x", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": "x", "logprobs": True}, "logprobs", "valid integer"),
        ({"prompt": "x", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "x", "n": 65}, "n", "INFERENCE_QUEUE_LIMIT"),
        ({"prompt": ["x"] * 33, "n": 2}, "prompt", "66 texts, but one request may have 48"),
        ({"prompt": "x", "temperature": "1"}, "temperature", "temperature is '1'"),
        ({"prompt": "x", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
        ({"prompt": "x", "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a known field"),
        ({"prompt": "x", "min_tokens": 3}, "min_tokens", "min_tokens is not a known field"),
        ({"prompt": "x", "logit_bias": {"300": 1}}, "logit_bias", "names id 300"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias.a.[key]", "valid integer"),
    ],
)
def test_what_is_refused_names_field_value_and_what_to_do(api: Any, body: Any, param: str, said: str) -> None:
    response = api.client.post(COMPLETIONS, content=json.dumps(body))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]


def test_fields_that_change_nothing_are_taken_and_nulls_are_defaults(api: Any) -> None:
    plain = api.post(COMPLETIONS, prompt="a", seed=1)["choices"]
    extra = {"user": "u", "metadata": {"a": ["b"]}, "store": True, "service_tier": "auto", "safety_identifier": "s"}
    assert api.post(COMPLETIONS, prompt="a", seed=1, **extra)["choices"] == plain
    nulls = dict.fromkeys(["model", "max_tokens", "n", "stop", "stream", "logprobs", "echo", "suffix", "logit_bias"])
    assert api.post(COMPLETIONS, prompt="a", seed=1, **nulls)["choices"] == plain
    assert api.post(COMPLETIONS, prompt="a", seed=1.0, max_tokens=16.0)["choices"] == plain


def test_a_default_of_tokens_shrinks_to_what_fits(api: Any) -> None:
    prompt = [65] * (api.snapshot.max_prompt_tokens - 3)
    short = api.post(COMPLETIONS, prompt=prompt, temperature=0, logit_bias={"0": -100})
    assert short["usage"]["completion_tokens"] == 4
    assert "room for 4" in api.refusal(COMPLETIONS, prompt=prompt, max_tokens=16)["message"]


def test_a_prompt_is_refused_by_its_bytes_before_it_is_tokenised(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentforge.snapshots.snapshot.Snapshot.encode", lambda *_, **__: pytest.fail("tokenised"))
    error = api.refusal(COMPLETIONS, prompt=["a", "é" * api.snapshot.max_prompt_bytes])
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "bytes" in error["message"]


def test_an_unknown_model_is_not_found(api: Any) -> None:
    for name in ("demo/step-00000001", "demo", "latentforge"):
        assert api.post(COMPLETIONS, model=name, prompt="a")["model"] == "demo/step-00000001"
    error = api.refusal(COMPLETIONS, 404, model="gpt-4o", prompt="a")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "gpt-4o" in error["message"]


@pytest.mark.parametrize("prompt", [[1] * 700_000, [""] * 5000], ids=["numbers", "strings"])
def test_more_values_than_any_request_has_are_refused(api: Any, prompt: list[Any]) -> None:
    assert "which no request has" in api.refusal(COMPLETIONS, prompt=prompt)["message"]


def test_all_texts_of_a_request_are_admitted_or_none(
    serve_api: Any, publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    with serve_api(slots=2, queue_limit=3) as api:
        assert len(api.post(COMPLETIONS, prompt="a", n=5)["choices"]) == 5
        # So many pass where others leave less room than an idle server has.
        monkeypatch.setattr(completions, "check_choices", lambda *_, **__: None)
        response = api.client.post(COMPLETIONS, json={"prompt": "a", "n": 6, "max_tokens": 500})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        streamed = api.client.post(COMPLETIONS, json={"prompt": "a", "n": 6, "stream": True})
        assert (streamed.status_code, streamed.json()["error"]["code"]) == (429, "queue_full")
        # Nothing of those is left behind.
        while api.service.engine.queued or api.service.engine.running:
            time.sleep(0.001)
        assert len(api.post(COMPLETIONS, prompt="a", n=5)["choices"]) == 5


def test_more_texts_than_ever_fit_are_no_reason_to_try_again(serve_api: Any, publish: Callable[..., Path]) -> None:
    publish(1)
    with serve_api(slots=2, queue_limit=3) as api:
        for extra in ({}, {"stream": True}):
            assert api.refusal(COMPLETIONS, prompt="a", n=6, **extra)["code"] == "too_many_choices"


def test_as_many_prompts_are_scored_as_a_request_may_have(serve_api: Any, publish: Callable[..., Path]) -> None:
    publish(1)
    with serve_api(slots=2, queue_limit=0) as api:
        answer = api.post(COMPLETIONS, prompt=["ab"] * 20, max_tokens=0, echo=True, logprobs=1)
        told = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
    assert len(told) == 20
    assert all(logprobs == pytest.approx(told[0], abs=1e-4) for logprobs in told)
    assert told[0][-1] < 0


async def test_a_client_that_hangs_up_frees_all_its_slots(api: Any) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1000, "logit_bias": {"0": -100}}
    engine = api.service.engine
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        async with client.stream("POST", COMPLETIONS, json=body | {"stream": True}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    break
            assert engine.running == 4
        await _until(lambda: engine.running == 0)
        whole = asyncio.create_task(client.post(COMPLETIONS, json=body))
        await _until(lambda: engine.running == 4)
        whole.cancel()
        await asyncio.gather(whole, return_exceptions=True)
        await _until(lambda: engine.running == 0)
    assert engine.engine.tokens_drawn < 6 * 1000


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_what_goes_wrong_midway_is_an_event(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, steps = api.snapshot.decoding, []
    step = decoding.step

    def fail_at_third(texts: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("secret detail")
        return step(texts)

    monkeypatch.setattr(decoding, "step", fail_at_third)
    events = api.events(COMPLETIONS, prompt="a", max_tokens=40, seed=1, logit_bias={"0": -100})
    assert len(events) == 3
    assert events[-1]["error"]["type"] == "server_error"
    assert events[-1]["error"]["code"] == "generation_failed"
    steps.clear()
    error = api.refusal(COMPLETIONS, 500, prompt="a", max_tokens=40, seed=1, logit_bias={"0": -100})
    assert error["code"] == "generation_failed"


def test_silence_is_filled_with_comments(
    serve_api: Any, publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    with serve_api(heartbeat_seconds=0.05) as api:
        prefill = api.snapshot.decoding.prefill
        waits = [0.4]

        def slowly(*args: Any) -> Any:
            time.sleep(waits.pop() if waits else 0)
            return prefill(*args)

        monkeypatch.setattr(api.snapshot.decoding, "prefill", slowly)
        with api.client.stream("POST", COMPLETIONS, json={"prompt": "abc", "stream": True}) as response:
            told = response.read().decode()
    assert told.startswith(": nothing new yet\n\n: nothing new yet\n\n")
    assert told.endswith("data: [DONE]\n\n")

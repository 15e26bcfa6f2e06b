"""Answers that a real vLLM 0.32 gave (recorded/), and answers that it must not give."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind
from latentforge.gateway.backends.vllm.answers import continuation, scored
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.tokenizer import TextTokenizer

VOCAB = 300
_RECORDED = Path(__file__).with_name("recorded")


def recorded(name: str) -> tuple[dict[str, Any], bytes]:
    """What was asked and the body that came."""
    content = json.loads((_RECORDED / f"{name}.json").read_text())
    return content["request"], content["body"].encode()


@pytest.mark.parametrize("name", ["score", "score_k1", "score_all"])
def test_recorded_rows_are_read_to_the_last_digit(name: str) -> None:
    asked, body = recorded(name)
    top_k = asked["prompt_logprobs"]
    sequences = [np.array(ids, np.uint32) for ids in asked["prompt"]]
    answers = scored(body, sequences, top_k, VOCAB)
    for choice, ids, rows in zip(json.loads(body)["choices"], asked["prompt"], answers, strict=True):
        assert len(rows) == len(ids) - 1
        assert rows.first_position == 1
        for r, written in enumerate(choice["prompt_logprobs"][1:]):
            best = sorted((e["rank"], int(i), e["logprob"]) for i, e in written.items() if e["rank"] <= top_k)
            assert len(best) == top_k
            assert rows.ids[r].tolist() == [i for _, i, _ in best]
            assert rows.logprobs[r].tolist() == [np.float32(p) for _, _, p in best]
            own = written[str(ids[r + 1])]
            assert rows.realised_logprobs[r] == np.float32(own["logprob"])
            assert rows.realised_ranks[r] == own["rank"]
            assert rows.tail_mass[r] == pytest.approx(1 - math.fsum(math.exp(p) for _, _, p in best), abs=1e-6)


def changed(change: Callable[[list[Any]], object]) -> bytes:
    """The recorded answer for two prompts after a change of its choices."""
    answer = json.loads(recorded("score")[1])
    change(answer["choices"])
    return json.dumps(answer).encode()


def _rows(choices: list[Any], index: int = 1) -> Any:
    return choices[index]["prompt_logprobs"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.pop(), "1 choices where 2"),
        (lambda c: c[1].update(index=0), "2 choices where 2"),
        (lambda c: c[1].update(prompt_logprobs=None), "prompt_logprobs is null"),
        (lambda c: c[1].update(prompt_logprobs=[None]), "1 entries for 3 tokens"),
        (lambda c: _rows(c).pop(), "2 entries for 3 tokens"),
        (lambda c: _rows(c).append({}), "4 entries for 3 tokens"),
        (lambda c: _rows(c).__setitem__(2, None), "position 2 is null"),
        (lambda c: _rows(c)[1].popitem(), "0 entries of rank 3"),
        (lambda c: next(iter(_rows(c)[1].values())).update(rank=None), "no rank"),
        (lambda c: next(iter(_rows(c)[1].values())).pop("rank"), "missing required field `rank`"),
        (lambda c: next(iter(_rows(c)[1].values())).update(logprob=None), "Expected `float`"),
        (lambda c: _rows(c)[1].update(x=_rows(c)[1].popitem()[1]), "Expected `int`"),
        (lambda c: c[0].update(prompt_logprobs=_rows(c)), "3 entries for 7 tokens"),
        (lambda c: c.clear(), "0 choices where 2"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(change: Callable[[list[Any]], object], why: str) -> None:
    sequences = [np.array(ids, np.uint32) for ids in recorded("score")[0]["prompt"]]
    with pytest.raises(BackendError, match=why) as caught:
        scored(changed(change), sequences, 3, VOCAB)
    assert caught.value.kind is FailureKind.BROKEN


def test_choices_are_put_in_the_order_of_the_prompts() -> None:
    sequences = [np.array(ids, np.uint32) for ids in recorded("score")[0]["prompt"]]
    turned = scored(changed(lambda c: c.reverse()), sequences, 3, VOCAB)
    straight = scored(recorded("score")[1], sequences, 3, VOCAB)
    assert [rows.ids.tolist() for rows in turned] == [rows.ids.tolist() for rows in straight]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"{}", b'{"choices": null}', b'{"choices": [{}]}'])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(BackendError, match="cannot be read") as caught:
        scored(body, [np.array([1, 2], np.uint32)], 1, VOCAB)
    assert caught.value.kind is FailureKind.BROKEN


@pytest.fixture(scope="session")
def tokenizer(random_teacher: Path) -> TextTokenizer:
    return TextTokenizer(random_teacher)


def generation(asked: dict[str, Any], stop: tuple[str, ...] = ()) -> ContinuationRequest:
    return ContinuationRequest(
        prompt_ids=np.array(asked["prompt"], np.uint32),
        max_tokens=asked["max_tokens"],
        temperature=asked["temperature"],
        top_p=asked["top_p"],
        seed=asked["seed"],
        n=1,
        top_k=asked["logprobs"],
        stop=stop,
    )


@pytest.mark.parametrize(
    ("name", "reason", "text"),
    [("length", pb.FINISH_REASON_LENGTH, "\ufffda(\ufffd;\ufffd"), ("end_of_text", pb.FINISH_REASON_STOP, "9")],
)
def test_recorded_continuations_have_their_rows(
    name: str, reason: pb.FinishReason.ValueType, text: str, tokenizer: TextTokenizer
) -> None:
    asked, body = recorded(name)
    asked["prompt"] = asked["prompt"][0]
    (choice,) = json.loads(body)["choices"]
    piece = continuation(body, 4, generation(asked), tokenizer, VOCAB)
    assert piece.index == 4
    assert piece.finish_reason == reason
    assert piece.token_ids == choice["token_ids"]
    # vLLM's own text begins with what the prompt left incomplete, and ends before what is incomplete.
    assert piece.text == text != choice["text"]
    assert piece.rows is not None
    assert piece.rows.first_position == len(asked["prompt"])
    for r, (token_id, top) in enumerate(zip(choice["token_ids"], choice["logprobs"]["top_logprobs"], strict=True)):
        own = f"token_id:{token_id}"
        others = sorted(((-p, name) for name, p in top.items() if len(top) == asked["logprobs"] or name != own))
        assert [f"token_id:{i}" for i in piece.rows.ids[r]] == [name for _, name in others]
        assert piece.rows.logprobs[r].tolist() == [np.float32(-p) for p, _ in others]
        assert piece.rows.realised_logprobs[r] == np.float32(top[own])
        rank = piece.rows.realised_ranks[r]
        assert rank == 0 if len(top) > asked["logprobs"] else piece.rows.ids[r, rank - 1] == token_id


def test_text_that_only_looks_like_a_special_token_stays(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, body = recorded("length")
    asked["prompt"] = asked["prompt"][0]
    assert continuation(body, 0, generation(asked, ("a(",)), tokenizer, VOCAB).text == "\ufffd"
    monkeypatch.setattr(tokenizer, "special_id", {"a(": 1}.get)
    assert continuation(body, 0, generation(asked, ("a(",)), tokenizer, VOCAB).text == "\ufffda(\ufffd;\ufffd"


def _logprobs(choices: list[Any]) -> Any:
    return choices[0]["logprobs"]


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        (lambda c: c[0].update(finish_reason="abort"), FailureKind.GONE, "ended a continuation with 'abort'"),
        (lambda c: c[0].update(finish_reason=None), FailureKind.GONE, "ended a continuation with None"),
        (lambda c: c[0].update(token_ids=None), FailureKind.BROKEN, "without token_ids"),
        (lambda c: c[0].update(logprobs=None), FailureKind.BROKEN, "logprobs is null"),
        (lambda c: c[0]["token_ids"].pop(), FailureKind.BROKEN, "not token_ids"),
        (lambda c: _logprobs(c)["tokens"].__setitem__(0, "a"), FailureKind.BROKEN, "not token_ids"),
        (lambda c: _logprobs(c)["top_logprobs"].pop(), FailureKind.BROKEN, "5 rows, and 6 positions"),
        (lambda c: _logprobs(c)["top_logprobs"].__setitem__(1, None), FailureKind.BROKEN, "position 4 has no token"),
        (lambda c: [_logprobs(c)["top_logprobs"][1].popitem() for _ in "12"], FailureKind.BROKEN, "rank 3"),
        (lambda c: _logprobs(c)["top_logprobs"][1].update(x=-1.0), FailureKind.BROKEN, "position 4 has no token ids"),
        (lambda c: _logprobs(c)["top_logprobs"][1].update({"token_id:x": -1.0}), FailureKind.BROKEN, "wrong"),
    ],
)
def test_a_continuation_that_contradicts_itself_is_refused(
    change: Callable[[list[Any]], object], kind: FailureKind, why: str, tokenizer: TextTokenizer
) -> None:
    asked, body = recorded("length")
    answer = json.loads(body)
    change(answer["choices"])
    with pytest.raises(BackendError, match=why) as caught:
        continuation(
            json.dumps(answer).encode(), 0, generation({**asked, "prompt": asked["prompt"][0]}), tokenizer, VOCAB
        )
    assert caught.value.kind is kind

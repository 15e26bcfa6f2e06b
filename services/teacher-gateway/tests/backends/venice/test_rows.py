"""Cassettes are answers written by hand to the published schema; each says what is in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece
from latentforge.gateway.backends.mapped_rows import mapped_piece
from latentforge.gateway.backends.token_mapping import TokenMapping
from latentforge.gateway.backends.venice.messages import (
    VENICE_PARAMETERS,
    check_request,
    parse_completion,
    parse_models,
    request_body,
)
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.tokenizer import TextTokenizer
from tools.venice_server.schema import ChatRequest

CASSETTES = Path(__file__).with_name("cassettes")


@pytest.fixture(scope="session")
def mapping(random_teacher: Path) -> TokenMapping:
    return TokenMapping(TextTokenizer(random_teacher))


def cassette(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CASSETTES / f"{name}.json").read_text())["answer"]
    return content


def generation(**changes: Any) -> ContinuationRequest:
    defaults: dict[str, Any] = {
        "prompt_ids": np.arange(7, dtype=np.uint32),
        "max_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": None,
        "n": 1,
        "top_k": 3,
        "stop": (),
        "chat": (("user", "Say hi."),),
    }
    return ContinuationRequest(**(defaults | changes))


def read(name: str, mapping: TokenMapping, **changes: Any) -> Piece:
    request = generation(**changes)
    (choice,) = parse_completion(cassette(name)).choices
    return mapped_piece(choice.written, request, request.top_k, mapping)


def ids_of(text: str | bytes, mapping: TokenMapping) -> list[int]:
    data = text.encode() if isinstance(text, str) else text
    found = [mapping.id_of("", bytes([byte])) or mapping.id_of(chr(byte), bytes([byte])) for byte in data]
    assert None not in found
    return [i for i in found if i is not None]


def test_content_becomes_ids_and_rows_from_the_prompts_end_on(mapping: TokenMapping) -> None:
    piece = read("content_shape", mapping)
    end = mapping.id_of("<|im_end|>")
    assert piece.token_ids == [*ids_of("Hi", mapping), end]
    assert (piece.text, piece.finish_reason, piece.detail) == ("Hi", pb.FINISH_REASON_STOP, "")
    rows = piece.rows
    assert rows is not None
    assert rows.first_position == 7
    assert rows.ids[0].tolist() == ids_of("HTW", mapping)
    assert rows.ids[1].tolist() == ids_of("eio", mapping)
    np.testing.assert_allclose(np.exp(rows.logprobs[1]), [0.5, 0.3, 0.1], atol=1e-5)
    assert rows.realised_ranks.tolist() == [1, 2, 1]
    np.testing.assert_allclose(np.exp(rows.realised_logprobs), [0.6, 0.3, 0.9], atol=1e-5)
    np.testing.assert_allclose(rows.tail_mass, [0.1, 0.1, 0.03], atol=1e-5)
    assert rows.counts.tolist() == [3, 3, 3]
    assert rows.unmapped_mass is not None
    assert rows.unmapped_mass.tolist() == [0, 0, 0]


def test_the_flat_shape_is_one_token(mapping: TokenMapping) -> None:
    piece = read("flat_shape", mapping)
    assert piece.token_ids == ids_of("H", mapping)
    assert piece.finish_reason == pb.FINISH_REASON_LENGTH
    assert piece.rows is not None
    assert piece.rows.ids[0].tolist() == ids_of("HTW", mapping)


def test_entries_without_an_id_are_left_out_and_their_mass_is_said(mapping: TokenMapping) -> None:
    for name, unmapped in (("no_bytes", 0.3), ("lossy_candidates", 0.3)):
        rows = read(name, mapping).rows
        assert rows is not None
        assert rows.counts[0] == 1
        assert rows.ids[0, 0] == ids_of("H", mapping)[0]
        # The tail is all that the row does not say, so what has no id is in it.
        assert rows.tail_mass[0] == pytest.approx(0.4, abs=1e-5)
        assert rows.unmapped_mass is not None
        assert rows.unmapped_mass[0] == pytest.approx(unmapped, abs=1e-5)


def test_halves_of_a_character_are_known_by_their_own_bytes(mapping: TokenMapping) -> None:
    piece = read("exact_bytes", mapping)
    assert piece.token_ids == ids_of("é", mapping)
    assert piece.rows is not None
    assert piece.rows.ids[0].tolist() == [*ids_of(b"\xc3", mapping), *ids_of(b"\xe2", mapping), *ids_of("a", mapping)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lossy_bytes", "no id is certain for token 0"),
        (
            "contradicting_text",
            "2 sampled tokens do not make the text: they have 2 characters, it has 8, and they differ",
        ),
        ("flat_shape_of_many", "1 sampled tokens do not make the text"),
        ("reasoned", "the model reasoned although it was told not to"),
        ("two_probabilities", "has two log-probabilities for 'H'"),
        ("more_than_one", "the probabilities at token 0 sum to 1.200"),
        # Without the stop string in the request, the text lacks a token.
        ("stopped_by_a_string", "do not make the text"),
    ],
)
def test_an_answer_that_contradicts_itself_is_dropped_whole(mapping: TokenMapping, name: str, why: str) -> None:
    piece = read(name, mapping)
    assert piece.finish_reason == pb.FINISH_REASON_DROPPED
    assert why in piece.detail
    assert (piece.token_ids, piece.text, piece.rows) == ([], "", None)


def test_a_stop_string_is_among_the_tokens_and_not_in_the_text(mapping: TokenMapping) -> None:
    piece = read("stopped_by_a_string", mapping, stop=("x", "i"))
    assert piece.token_ids == ids_of("Hi", mapping)
    assert (piece.text, piece.finish_reason) == ("H", pb.FINISH_REASON_STOP)


def test_a_sampled_token_of_unknown_rank_stands_last_and_has_no_rank(mapping: TokenMapping) -> None:
    rows = read("sampled_first", mapping).rows
    assert rows is not None
    assert rows.ids[0].tolist() == ids_of("HTz", mapping)
    assert rows.realised_ranks[0] == 0
    assert np.exp(rows.realised_logprobs[0]) == pytest.approx(0.001, rel=1e-3)


def test_rows_are_as_wide_as_was_asked(mapping: TokenMapping) -> None:
    rows = read("content_shape", mapping, top_k=2).rows
    assert rows is not None
    assert rows.ids.shape == (3, 2)
    np.testing.assert_allclose(rows.tail_mass, [0.2, 0.2, 0.05], atol=1e-5)
    rows = read("content_shape", mapping, top_k=6).rows
    assert rows is not None
    assert rows.ids.shape == (3, 6)
    assert rows.counts.tolist() == [3, 3, 3]
    assert read("content_shape", mapping, top_k=0).rows is None


@pytest.mark.parametrize("name", list(VENICE_PARAMETERS))
def test_an_answer_that_was_not_made_as_asked_is_an_error_that_names_the_parameter(name: str) -> None:
    answer = cassette("content_shape")
    for changed in (not VENICE_PARAMETERS[name], None):
        answer["venice_parameters"][name] = changed
        with pytest.raises(BackendError, match=f"not answer as asked: in the venice_parameters.*{name} is {changed}"):
            parse_completion(answer)
    del answer["venice_parameters"]
    with pytest.raises(BackendError, match="not answer as asked"):
        parse_completion(answer)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("choices"),
        lambda a: a.pop("usage"),
        lambda a: a["choices"][0].pop("message"),
        lambda a: a["choices"][0]["logprobs"]["content"][0].pop("logprob"),
        lambda a: a["choices"][0]["logprobs"]["content"][0].update(bytes=[300]),
        lambda a: a["choices"][0]["logprobs"]["content"][0].update(bytes=[None]),
        lambda a: a["choices"][0]["logprobs"]["content"][0].update(logprob=float("nan")),
    ],
)
def test_an_answer_of_another_schema_is_an_error_and_never_a_guess(change: Any) -> None:
    answer = cassette("content_shape")
    change(answer)
    with pytest.raises(BackendError, match="is not as published: "):
        parse_completion(answer)
    with pytest.raises(BackendError, match="list of models is not as published"):
        parse_models({"data": [{}]})


def test_requests_keep_to_the_published_schema_and_switch_everything_off() -> None:
    for request in (
        generation(),
        generation(seed=0, stop=("a", "b"), n=3, temperature=0.0),
        generation(seed=2**64 - 1),
    ):
        body = request_body(request, "qwen3-5-9b", 20)
        chat = ChatRequest.model_validate(body)
        assert chat.logprobs
        assert (chat.top_logprobs, chat.max_completion_tokens, chat.n) == (20, 8, request.n)
        assert not chat.venice_parameters.include_venice_system_prompt
        assert chat.venice_parameters.enable_web_search == "off"
        assert body["stream"] is False
        assert "fallbacks" not in body
        assert chat.seed is None if request.seed is None else 0 < (chat.seed or 0) < 2**31
    assert "top_logprobs" not in request_body(generation(top_k=0), "m", 0)


def test_what_venice_would_refuse_is_refused_before_it_is_asked() -> None:
    with pytest.raises(BackendError, match="temperature is 3; Venice allows 0 to 2; stop has 5 strings") as caught:
        check_request(generation(temperature=3.0, stop=("a",) * 5))
    assert caught.value.kind is FailureKind.REFUSED

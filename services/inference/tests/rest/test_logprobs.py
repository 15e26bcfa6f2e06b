from pathlib import Path

import pytest
import torch

from latentforge.inference.rest.continuations import PlacedToken
from latentforge.inference.rest.logprobs import chat_logprobs, completion_logprobs, prompt_tokens, token_text
from latentforge.inference.rest.prompts import encode_text
from latentforge.model.decoding.batch import TextLogprobs
from latentforge.snapshots.snapshot import Snapshot, load_snapshot


@pytest.fixture
def snapshot(publish: object) -> Snapshot:
    assert callable(publish)
    place: Path = publish(1)
    return load_snapshot(place, torch.device("cpu"))


def test_tokens_read_as_text_and_parts_of_characters_as_bytes(snapshot: Snapshot) -> None:
    ids = snapshot.encode("a é")
    assert [token_text(snapshot, i) for i in ids] == ["a", " ", "bytes:\\xc3", "bytes:\\xa9"]
    assert token_text(snapshot, 0) == "<|endoftext|>"


def test_the_texts_own_token_is_an_alternative_whether_likely_or_not(snapshot: Snapshot) -> None:
    a, b, c = snapshot.encode("abc")
    tokens = [PlacedToken(a, 0, -3.0, [(b, -1.0), (c, -2.0)]), PlacedToken(b, 1, -1.0, [(b, -1.0), (c, -2.0)])]
    said = completion_logprobs(snapshot, tokens, 2)
    assert said.top_logprobs == [{"b": -1.0, "c": -2.0, "a": -3.0}, {"b": -1.0, "c": -2.0}]
    assert said.text_offset == [0, 1]
    assert completion_logprobs(snapshot, tokens, 0).top_logprobs is None
    [first, _] = chat_logprobs(snapshot, tokens).content
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -3.0)
    assert [other.token for other in first.top_logprobs] == ["b", "c"]


def test_what_cannot_be_has_a_log_probability_that_json_can_hold(snapshot: Snapshot) -> None:
    [a] = snapshot.encode("a")
    tokens = [PlacedToken(a, 0, -torch.inf, [(a, -torch.inf)])]
    assert completion_logprobs(snapshot, tokens, 1).token_logprobs == [-9999.0]
    assert chat_logprobs(snapshot, tokens).content[0].top_logprobs[0].logprob == -9999.0


def test_a_prompts_first_token_has_none(snapshot: Snapshot) -> None:
    prompt = encode_text(snapshot, "é!")
    scored = TextLogprobs([-1.0, -2.0, -3.0], [[(5, -0.5)]] * 3)
    said = completion_logprobs(snapshot, prompt_tokens(snapshot, prompt, scored), 1)
    assert said.token_logprobs == [None, -2.0, -3.0]
    assert said.top_logprobs is not None
    assert said.top_logprobs[0] is None
    # The character is there with its last token.
    assert said.text_offset == [0, 0, 1]

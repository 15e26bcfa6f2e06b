from collections.abc import Callable

import pytest

from latentforge.model.engine.engine import Engine
from latentforge.model.engine.errors import EngineFullError, GenerationCancelledError
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest
from tests.engine_clients import Client
from tests.serial_decoding import SerialDecoding

Serial = Callable[..., SerialDecoding]


def ask(decoding: SerialDecoding, max_tokens: int = 8, num_prompt: int = 4) -> GenerationRequest:
    return GenerationRequest(decoding, [5] * num_prompt, max_tokens)


def test_a_full_queue_refuses_and_what_has_a_slot_does_not_count(serial: Serial) -> None:
    decoding = serial(num_slots=2)
    client = Client(Engine(EngineLimits(queue_limit=1)))
    clients = [client.ask(ask(decoding)) for _ in range(3)]
    with pytest.raises(EngineFullError, match="queue_limit") as full:
        client.ask(ask(decoding))
    assert (full.value.limit, full.value.retry_after >= 1) == ("queue_limit", True)
    client.engine.run_once()
    with pytest.raises(EngineFullError):
        client.ask(ask(decoding))
    clients[2].ticket.cancel()
    client.engine.run_once()
    client.ask(ask(decoding))


def test_a_queue_of_none_takes_what_has_a_slot(serial: Serial) -> None:
    decoding = serial(num_slots=2)
    client = Client(Engine(EngineLimits(queue_limit=0)))
    for _ in range(2):
        client.ask(ask(decoding))
    with pytest.raises(EngineFullError):
        client.ask(ask(decoding))
    # Another model has slots of its own.
    client.ask(ask(serial()))


def test_one_models_queue_counts_for_all_but_not_for_those_that_have_a_slot(serial: Serial) -> None:
    old, new = serial(num_slots=1), serial(num_slots=1)
    client = Client(Engine(EngineLimits(queue_limit=1)))
    for decoding in (old, old, new):
        client.ask(ask(decoding))
    with pytest.raises(EngineFullError):
        client.ask(ask(new))


def test_queued_tokens_are_bounded_but_one_long_request_is_taken(serial: Serial) -> None:
    decoding = serial(num_slots=1)
    client = Client(Engine(EngineLimits(queue_tokens=30)))
    client.ask(ask(decoding, 40))
    client.engine.run_once()
    client.ask(ask(decoding, 40))
    with pytest.raises(EngineFullError, match="queue_tokens"):
        client.ask(ask(decoding, 1, 1))
    other, decoding = Client(Engine(EngineLimits(queue_tokens=30))), serial(num_slots=1)
    other.ask(ask(decoding))
    other.engine.run_once()
    for _ in range(3):
        other.ask(ask(decoding, 6))
    with pytest.raises(EngineFullError, match="queue_tokens"):
        other.ask(ask(decoding, 6))
    # What has a slot is not queued.
    other.ask(ask(serial(), 40))


def test_texts_to_score_have_places_of_their_own(serial: Serial) -> None:
    decoding = serial(num_slots=1)
    client = Client(Engine(EngineLimits(queue_limit=1, scoring_slots=2)))
    client.ask(ask(decoding))
    for _ in range(3):
        client.ask(ScoringRequest(decoding, [5] * 40))
    with pytest.raises(EngineFullError):
        client.ask(ScoringRequest(decoding, [5] * 40))
    client.engine.run_once()
    assert (client.engine.running, client.engine.slots_used, client.engine.queued) == (3, 1, 1)


def test_room_is_asked_for_before_a_request_is_made(serial: Serial) -> None:
    decoding = serial(num_slots=1)
    client = Client(Engine(EngineLimits(queue_limit=1)))
    client.engine.check_room(decoding, num_others=1)
    with pytest.raises(EngineFullError):
        client.engine.check_room(decoding, num_others=2)
    client.ask(ask(decoding))
    client.engine.check_room(decoding)
    client.ask(ask(decoding))
    with pytest.raises(EngineFullError):
        client.engine.check_room(decoding)


def test_a_closed_engine_takes_nothing_and_ends_what_it_has(serial: Serial) -> None:
    decoding = serial(num_slots=1)
    client = Client(Engine())
    clients = [client.ask(ask(decoding)) for _ in range(2)]
    client.engine.close()
    with pytest.raises(GenerationCancelledError, match="shutting down"):
        client.ask(ask(decoding))
    with pytest.raises(GenerationCancelledError):
        client.engine.check_room(decoding)
    client.engine.run_once()
    assert [client.ended for client in clients] == ["GenerationCancelledError"] * 2


def test_nothing_to_write_or_to_score_is_refused(serial: Serial) -> None:
    client = Client(Engine())
    with pytest.raises(ValueError, match="max_tokens=0"):
        client.ask(ask(serial(), 0))
    with pytest.raises(ValueError, match="no token_ids"):
        client.ask(ScoringRequest(serial(), []))


@pytest.mark.parametrize(("name", "value"), [("prefill_tokens", 0), ("request_seconds", 0.0), ("queue_limit", -1)])
def test_limits_that_make_no_sense_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}; set "):
        EngineLimits(**{name: value})  # type: ignore[arg-type]

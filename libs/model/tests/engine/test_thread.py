import threading
import time
from collections.abc import Callable, Iterator

import pytest

from latentforge.model.engine.engine import Engine
from latentforge.model.engine.observer import EngineObserver, Outcome
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest
from latentforge.model.engine.thread import EngineThread
from latentforge.model.engine.timings import Timings
from latentforge.model.sampling import SamplingParams
from tests.engine_clients import Client
from tests.serial_decoding import SerialDecoding, written_alone

Serial = Callable[..., SerialDecoding]


def ask(decoding: SerialDecoding, max_tokens: int = 8, seed: int = 0) -> GenerationRequest:
    return GenerationRequest(decoding, [5] * 6, max_tokens, SamplingParams(seed=seed))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_submitted_just_before_the_loop_sleeps_keeps_it_awake(
    serial: Serial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.model.engine.admission._RETRY_SECONDS", 3600)
    engine = Engine()
    assert not engine.run_once()
    client = Client(engine).ask(ask(serial()))
    sleeper = threading.Thread(target=engine.wait, daemon=True)
    sleeper.start()
    sleeper.join(10)
    assert not sleeper.is_alive()
    while client.ended is None:
        engine.run_once()


@pytest.fixture
def thread() -> Iterator[EngineThread]:
    thread = EngineThread(Engine())
    thread.start()
    yield thread
    thread.close()


def test_requests_of_several_threads_are_answered_and_an_idle_loop_sleeps(thread: EngineThread, serial: Serial) -> None:
    decoding = serial()
    engine = thread.engine
    done: list[tuple[list[int], str | None]] = []

    def ask_one(seed: int) -> None:
        client = Client(engine).ask(ask(decoding, seed=seed))
        until(lambda: client.ticket.is_over)
        until(lambda: client.ended is not None)
        done.append((client.token_ids, client.ended))

    callers = [threading.Thread(target=ask_one, args=(seed,)) for seed in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(done, key=str) == sorted((written_alone(ask(decoding, seed=seed)) for seed in range(8)), key=str)
    until(lambda: engine.is_idle)
    before = engine.iterations
    time.sleep(0.1)
    assert engine.iterations <= before + 1


def test_closing_tells_everybody(thread: EngineThread, serial: Serial) -> None:
    decoding = serial(num_slots=1, max_chunks=1024)
    clients = [Client(thread.engine).ask(ask(decoding, 4000)) for _ in range(2)]
    scoring = Client(thread.engine).ask(ScoringRequest(decoding, [5] * 2000))
    until(lambda: bool(clients[0].events) and thread.engine.running == 2)
    thread.close()
    assert [client.ended for client in [*clients, scoring]] == ["GenerationCancelledError"] * 3
    assert "shut down" in str(clients[0].events[-1])


def test_a_thread_that_was_never_started_tells_everybody_too(serial: Serial) -> None:
    thread = EngineThread(Engine())
    client = Client(thread.engine).ask(ask(serial()))
    thread.close()
    assert client.ended == "GenerationCancelledError"


def test_a_failure_of_the_loop_itself_fails_its_requests_and_the_loop_goes_on(serial: Serial) -> None:
    class Failing(EngineObserver):
        ends: list[tuple[Outcome, int]]

        def __init__(self) -> None:
            self.ends = []

        def on_prefill(self, num_tokens: int) -> None:
            if not self.ends:
                raise ZeroDivisionError("counting failed")

        def on_end(self, request: object, outcome: Outcome, timings: Timings) -> None:
            self.ends.append((outcome, timings.num_tokens))

    observer = Failing()
    thread = EngineThread(Engine(observer=observer))
    first = Client(thread.engine).ask(ask(serial()))
    thread.start()
    until(lambda: first.ended is not None)
    second = Client(thread.engine).ask(ask(serial()))
    until(lambda: second.ended is not None)
    thread.close()
    assert (first.ended, second.ended) == ("GenerationFailedError", "length")
    assert observer.ends == [("failed", 0), ("length", 8)]


def test_a_loop_that_cannot_even_tell_of_its_failure_goes_on(serial: Serial) -> None:
    class Failing(EngineObserver):
        num_ends = 0

        def on_prefill(self, num_tokens: int) -> None:
            if not self.num_ends:
                raise ZeroDivisionError("counting failed")

        def on_end(self, request: object, outcome: Outcome, timings: Timings) -> None:
            self.num_ends += 1
            if self.num_ends == 1:
                raise ZeroDivisionError("counting failed again")

    thread = EngineThread(Engine(observer=Failing()))
    first = Client(thread.engine).ask(ask(serial()))
    thread.start()
    until(lambda: first.ended is not None)
    second = Client(thread.engine).ask(ask(serial()))
    until(lambda: second.ended is not None)
    thread.close()
    assert (first.ended, second.ended) == ("GenerationFailedError", "length")


def test_whoever_wakes_others_is_called_once_an_iteration(serial: Serial) -> None:
    decoding = serial()
    told: list[int] = []
    engine = Engine()
    engine.on_iteration = lambda: told.append(sum(len(client.events) for client in clients))
    clients = [Client(engine).ask(ask(decoding, 8, seed)) for seed in range(3)]
    engine.run_once()
    engine.run_once()
    assert told == [3, 6]

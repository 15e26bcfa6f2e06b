"""What is noted within vLLM's worker, on a runner that calls what vLLM's does; tests/vllm has the real one."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.drafter import pass_recorder
from benchmarks.drafter.pass_recorder import PassRecorder
from benchmarks.drafter.passes import Pass

_FORWARD, _SAMPLING, _DRAFTING = 16.0, 2.0, 64.0


class _Clock:
    """The recorder's own; what takes time puts it forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(pass_recorder, "time", clock)
    return clock


class _Drafter:
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def propose(self, sampled: list[list[int]]) -> list[list[int]]:
        self._clock.now += _DRAFTING
        return [[1] for _ in sampled]


class _Runner:
    """Runs a pass in two calls, and drafts within the second, as vLLM's model runner does."""

    def __init__(self, clock: _Clock, *, drafts: bool) -> None:
        self._clock = clock
        self.names: list[str] = []
        self.sampled: list[list[int]] = []
        if drafts:
            self.drafter = _Drafter(clock)

    def execute_model(self, scheduled: Any) -> None:
        self._clock.now += _FORWARD
        self.names = list(scheduled.num_scheduled_tokens)
        self.sampled = scheduled.answers

    def sample_tokens(self, grammar: None) -> Any:
        self._clock.now += _SAMPLING
        if hasattr(self, "drafter"):
            self.drafter.propose(self.sampled)
        return SimpleNamespace(req_ids=self.names, sampled_token_ids=self.sampled)


def _noted(runner: _Runner, *steps: Any) -> list[Pass]:
    worker: Any = type("Worker", (PassRecorder,), {})()
    worker.model_runner = runner
    worker.record_passes()
    for step in steps:
        runner.execute_model(step)
        runner.sample_tokens(None)
    return [Pass.of(noted) for noted in worker.take_passes()]


def _step(read: dict[str, int], drafts: dict[str, list[int]], answers: list[list[int]]) -> Any:
    return SimpleNamespace(num_scheduled_tokens=read, scheduled_spec_decode_tokens=drafts, answers=answers)


def test_prompts_drafts_and_what_they_gave_are_told_apart(clock: _Clock) -> None:
    steps = [
        _step({"a": 40, "b": 1}, {}, [[5], [6]]),
        # a's draft of three is accepted up to its second token; b has none; c's prompt is not yet read to its end.
        _step({"a": 4, "b": 1, "c": 30}, {"a": [1, 2, 3]}, [[1, 2, 9], [7], []]),
    ]
    first, second = _noted(_Runner(clock, drafts=True), *steps)
    assert first.requests == ((None, 1), (0, 1))
    assert second.requests == ((3, 3), (0, 1), (None, 0))


def test_drafting_is_no_part_of_the_teachers_pass(clock: _Clock) -> None:
    first, second = _noted(_Runner(clock, drafts=True), *[_step({"a": 1}, {}, [[5]])] * 2)
    assert (first.began, first.seconds, first.draft_seconds) == (1000, _FORWARD + _SAMPLING, _DRAFTING)
    assert second.began == 1000 + _FORWARD + _SAMPLING + _DRAFTING
    (plain,) = _noted(_Runner(clock, drafts=False), _step({"a": 1}, {}, [[5]]))
    assert (plain.seconds, plain.draft_seconds) == (_FORWARD + _SAMPLING, 0)


def test_passes_are_given_once(clock: _Clock) -> None:
    worker: Any = type("Worker", (PassRecorder,), {})()
    worker.model_runner = _Runner(clock, drafts=False)
    worker.record_passes()
    worker.model_runner.execute_model(_step({"a": 1}, {}, [[5]]))
    worker.model_runner.sample_tokens(None)
    assert len(worker.take_passes()) == 1
    assert worker.take_passes() == []

"""Clients as processes, and what their answers come to."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.inference.load import Answered, LoadJob

_SLACK_SECONDS = 120


class LoadError(RuntimeError):
    """Clients that ended by themselves, or got no answer that counts."""


class ClientProcess:
    """Clients that ask while this process does something else; :meth:`answers` waits for their end."""

    def __init__(self, job: LoadJob) -> None:
        command = [sys.executable, "-m", "benchmarks.inference.load"]
        self._job = job
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        json.dump(asdict(job), self._process.stdin)
        self._process.stdin.close()
        self._process.stdin = None

    def answers(self) -> list[Answered]:
        """
        Raises:
            LoadError: the process failed.
        """
        try:
            printed, _ = self._process.communicate(timeout=self._job.seconds + _SLACK_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            raise LoadError(f"clients that ask for {self._job.seconds:g} s did not end") from None
        if self._process.returncode:
            raise LoadError(f"clients ended with exit code {self._process.returncode}")
        return [Answered(**answer) for answer in json.loads(printed)]

    def stop(self) -> None:
        """Ends it, answers or not."""
        self._process.kill()
        self._process.wait()


def ask(job: LoadJob) -> list[Answered]:
    """Runs a job to its end.

    Raises:
        LoadError: the process failed.
    """
    process = ClientProcess(job)
    try:
        return process.answers()
    finally:
        process.stop()


def checked(answers: Sequence[Answered]) -> list[Answered]:
    """The answers, none of which failed.

    Raises:
        LoadError: one did, or there are none.
    """
    requests = [answer for answer in answers if answer.kind == "request"]
    if bad := [answer.status for answer in requests if answer.status != 200]:
        raise LoadError(f"{len(bad)} of {len(requests)} requests failed, the first with status {bad[0]}")
    if not requests:
        raise LoadError("no request was answered in time; ask for longer")
    return requests


def tokens_per_second(answers: Sequence[Answered], warm_up: float) -> float:
    """Of all clients together, from ``warm_up`` seconds after the first request to the last one's beginning.

    A request's tokens are spread evenly over its time, so that those at the edges count in part.
    """
    begin = min(answer.began for answer in answers) + warm_up
    end = max(answer.began for answer in answers)
    if end <= begin:
        begin, end = begin - warm_up, max(answer.ended for answer in answers)
    inside = 0.0
    for answer in answers:
        shared = min(answer.ended, end) - max(answer.began, begin)
        if shared > 0:
            inside += answer.tokens * shared / (answer.ended - answer.began)
    return inside / (end - begin)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies_ms(answers: Sequence[Answered]) -> list[float]:
    """Milliseconds that each took its client."""
    return [1000 * (answer.ended - answer.began) for answer in answers]

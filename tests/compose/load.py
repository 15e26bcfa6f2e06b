"""Clients that ask a stack all the time, and compare each answer with what was computed without it."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3ForCausalLM

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient

_SCORERS = 3
# The cores are the stack's.
_PAUSE_SECONDS = 0.02
_SEQUENCES, _LENGTH, _POOL = 96, 40, 12
TOP_K = 10
# Of a log-probability: float32 arithmetic, and what float16 rounds.
_TOLERANCES: dict[LogprobDtype, tuple[float, float]] = {"float32": (1e-5, 5e-4), "float16": (1e-3, 2e-3)}


class ReferenceRows:
    """Sequences of random ids, and the teacher's distributions on them in float64; shares no code with the gateway."""

    def __init__(self, folder: Path) -> None:
        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.ids = np.random.default_rng(7).integers(4, model.config.vocab_size, (_SEQUENCES, _LENGTH))
        with torch.inference_mode():
            logits_nlv = model(torch.from_numpy(self.ids)).logits[:, :-1]
        # [sequences, L−1, v]: row r is FOR token r + 1.
        self.logprobs: NDArray[np.float32] = logits_nlv.log_softmax(-1).float().numpy()

    def error(self, sequence: int, length: int, rows: SparseRows, dtype: LogprobDtype) -> str | None:
        """What is wrong with the rows of a sequence's first ``length`` ids, or None."""
        if (len(rows), rows.top_k, rows.first_position) != (length - 1, TOP_K, 1):
            return f"{len(rows)} rows of {rows.top_k} from {rows.first_position} for {length} ids"
        logprobs_rv = self.logprobs[sequence, : length - 1]
        relative, absolute = _TOLERANCES[dtype]
        expected = {
            "logprobs": (rows.logprobs, -np.sort(-logprobs_rv, axis=1)[:, :TOP_K]),
            "logprobs of ids": (rows.logprobs, np.take_along_axis(logprobs_rv, rows.ids.astype(np.int64), axis=1)),
            "realised": (
                rows.realised_logprobs,
                logprobs_rv[np.arange(length - 1), self.ids[sequence, 1:length]],
            ),
        }
        for name, (given, known) in expected.items():
            if not np.allclose(given, known, rtol=relative, atol=absolute):
                return f"{name} off by {np.abs(given - known).max():.4f}"
        return None if all(len(set(row)) == TOP_K for row in rows.ids.tolist()) else "an id stands in a row twice"


@dataclass(frozen=True)
class Addresses:
    """Where a stack is reached, and how its clients say who they are."""

    gateway: str
    inference: str
    gateway_key: str
    inference_key: str
    tls_ca: Path

    def client(self, **options: Any) -> SyncTeacherClient:
        return SyncTeacherClient(self.gateway, api_key=self.gateway_key, tls_ca=self.tls_ca, **options)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Asks inference: GET, or POST with a body.

        Raises:
            ConnectionError: it does not answer.
        """
        headers = {"authorization": f"Bearer {self.inference_key}"}
        try:
            with httpx.Client(base_url=self.inference, headers=headers, trust_env=False, timeout=60) as client:
                return client.get(path) if body is None else client.post(path, json=body)
        except httpx.TransportError as error:
            raise ConnectionError(str(error)) from None

    def said(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What it says.

        Raises:
            ConnectionError: it does not answer, or not with 200.
        """
        answer = self.ask(path, body)
        if answer.status_code != httpx.codes.OK:
            raise ConnectionError(f"{path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()


class Load:
    """Scores and texts asked for from threads until the end; use as a context manager.

    Attributes:
        answers: scores that were right, by name of the thread's kind: ``scores`` and ``texts``.
        wrong: what was not as it must be, in words.
        failures: calls of a patient client that ended with an error.
    """

    def __init__(self, addresses: Addresses, reference: ReferenceRows) -> None:
        self._addresses, self._reference = addresses, reference
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.answers = {"scores": 0, "texts": 0}
        self.wrong: list[str] = []
        self.failures: list[str] = []
        self._texts: dict[tuple[str, int], list[int]] = {}
        self._threads = [
            *(threading.Thread(target=self._run, args=(self._score, seed)) for seed in range(_SCORERS)),
            threading.Thread(target=self._run, args=(self._write, _SCORERS)),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Nothing that was answered is wrong, and no patient client was let down."""
        assert self.wrong == []
        assert self.failures == []

    def _run(self, work: Callable[[random.Random], None], seed: int) -> None:
        try:
            work(random.Random(seed))
        except Exception as error:
            self.failures.append(f"{work.__name__} ended: {error!r}")

    def _count(self, kind: str) -> None:
        with self._lock:
            self.answers[kind] += 1

    def _score(self, rng: random.Random) -> None:
        """Half of what is asked for was asked for before: rows of the cache, and new ones."""
        with self._addresses.client(timeout=120, attempts=1000) as client:
            while not self._ended.wait(_PAUSE_SECONDS):
                again = rng.random() < 0.5
                sequence = rng.randrange(_POOL if again else _SEQUENCES)
                length = _LENGTH if again else rng.randrange(2, _LENGTH + 1)
                dtype: LogprobDtype = rng.choice(("float16", "float32"))
                try:
                    rows = client.score(self._reference.ids[sequence, :length].tolist(), TOP_K, dtype)
                except TeacherError as error:
                    self.failures.append(str(error))
                    continue
                if (what := self._reference.error(sequence, length, rows, dtype)) is not None:
                    self.wrong.append(f"sequence {sequence}[:{length}] in {dtype}: {what}")
                self._count("scores")

    def _write(self, rng: random.Random) -> None:
        """One checkpoint's most probable text for a prompt is one text; a server that is away may refuse."""
        while not self._ended.wait(_PAUSE_SECONDS):
            prompt = rng.randrange(3)
            body = {"prompt": f"def f{prompt}(", "max_tokens": 16, "temperature": 0}
            try:
                answer = self._addresses.ask("/generate", body)
            except ConnectionError:
                continue
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                continue
            if answer.status_code != httpx.codes.OK:
                self.failures.append(f"/generate: {answer.status_code} {answer.text[:200]}")
                continue
            said = answer.json()
            known = self._texts.setdefault((said["checkpoint"], prompt), said["token_ids"])
            if said["token_ids"] != known:
                self.wrong.append(f"{said['checkpoint']} writes {said['token_ids']} and before {known}")
            self._count("texts")

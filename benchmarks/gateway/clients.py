"""Client processes: each has one connection and one request open at a time, and turns every answer into arrays.

Besides, bare connections for what is measured within one process.
"""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import grpc
import httpx
import numpy as np
import orjson

from benchmarks.gateway.workload import Ids, completions_request
from latentforge.gateway.backends.vllm.answers import scored
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1.teacher_pb2_grpc import TeacherServiceStub
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.teacher_client.wire import MAX_MESSAGE_BYTES

_TIMEOUT_SECONDS = 600.0


class ClientError(RuntimeError):
    """A client did not get what it asked for."""


class Asker(Protocol):
    """A connection to a server that scores."""

    def ask(self, sequences: Sequence[Ids]) -> list[SparseRows]:
        """One request; rows of each sequence, in their order."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class GatewayServer:
    """A teacher-gateway at host:port, asked with its own client."""

    target: str
    row_encoding: Literal["arrays", "packed"]
    top_k: int

    def connect(self) -> Asker:
        return _GatewayAsker(self)


@dataclass(frozen=True)
class CompletionsServer:
    """Whatever answers POST /v1/completions with vLLM's prompt_logprobs; the gateway's own parser reads them.

    ``model`` None asks for the first that it lists.
    """

    url: str
    model: str | None
    vocab_size: int
    top_k: int

    def connect(self) -> Asker:
        return _CompletionsAsker(self)


class _GatewayAsker:
    def __init__(self, server: GatewayServer) -> None:
        self._server = server
        self._client = SyncTeacherClient(server.target, timeout=_TIMEOUT_SECONDS, attempts=1)
        # The tokenizer's fingerprint goes with every request; asking for it is part of connecting.
        self._client.teacher()

    def ask(self, sequences: Sequence[Ids]) -> list[SparseRows]:
        server = self._server
        if len(sequences) == 1:
            return [self._client.score(sequences[0], server.top_k, row_encoding=server.row_encoding)]
        found: list[SparseRows | None] = [None] * len(sequences)
        for answer in self._client.score_batch(sequences, server.top_k, row_encoding=server.row_encoding):
            if answer.rows is None:
                raise ClientError(f"sequence {answer.index}: {answer.error}")
            found[answer.index] = answer.rows
        return [rows for rows in found if rows is not None]

    def close(self) -> None:
        self._client.close()


class _CompletionsAsker:
    def __init__(self, server: CompletionsServer) -> None:
        self._server = server
        self._http = httpx.Client(base_url=server.url, timeout=_TIMEOUT_SECONDS, trust_env=False)
        listed = self._http.get("/v1/models").raise_for_status().json()["data"]
        self._model = server.model or str(listed[0]["id"])

    def ask(self, sequences: Sequence[Ids]) -> list[SparseRows]:
        server = self._server
        request = completions_request(self._model, sequences, server.top_k)
        answer = self._http.post(
            "/v1/completions", content=orjson.dumps(request), headers={"content-type": "application/json"}
        )
        if answer.status_code != 200:
            raise ClientError(f"{server.url} answers {answer.status_code}: {answer.text[:300]}")
        ids = [np.array(s, np.uint32) for s in sequences]
        return scored(answer.content, ids, server.top_k, server.vocab_size)

    def close(self) -> None:
        self._http.close()


Server = GatewayServer | CompletionsServer


@dataclass(frozen=True)
class ScoringJob:
    """What one client asks for: its requests one after another, all of that ``passes`` times."""

    server: Server
    requests: list[list[Ids]]
    passes: int = 1


@dataclass(frozen=True)
class _Done:
    started: float
    ended: float
    positions: int


@dataclass(frozen=True)
class Load:
    """Several clients at once.

    Attributes:
        seconds: from the first request of any client to the last answer of any, as arrays.
        positions: rows that they got.
    """

    seconds: float
    positions: int

    @property
    def positions_per_second(self) -> float:
        return self.positions / self.seconds


class Clients:
    """Processes that stay from one load to the next, so that no load pays for starting them.

    Raises:
        ClientError: (every method) a client failed, and how.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), name=f"client-{number}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            if error is None:
                process.join(timeout=10)
            # One that waits for an answer would wait on.
            process.kill()
            process.join()

    def run(self, jobs: Sequence[ScoringJob], on_start: Callable[[], None] = lambda: None) -> Load:
        """Runs one job per client, all at the same time; ``on_start`` is called when all have connected."""
        assert len(jobs) <= len(self._pipes)
        pipes = self._pipes[: len(jobs)]
        for pipe, job in zip(pipes, jobs, strict=True):
            pipe.send(job)
        for pipe in pipes:
            self._answer(pipe)
        on_start()
        for pipe in pipes:
            pipe.send(None)
        done = [self._answer(pipe) for pipe in pipes]
        seconds = max(d.ended for d in done) - min(d.started for d in done)
        return Load(seconds, sum(d.positions for d in done))

    def _answer(self, pipe: Connection) -> _Done:
        try:
            answer = pipe.recv()
        except EOFError:
            raise ClientError("a client process died") from None
        if isinstance(answer, str):
            raise ClientError(answer)
        assert isinstance(answer, _Done)
        return answer


def _work(pipe: Connection) -> None:
    # A Ctrl-C reaches every process of the terminal; ours ends when the pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        while True:
            job: ScoringJob = pipe.recv()
            try:
                with closing(job.server.connect()) as asker:
                    pipe.send(_Done(0.0, 0.0, 0))
                    pipe.recv()
                    answer: _Done | str = _do(job, asker)
            except (EOFError, ConnectionError):
                raise
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            pipe.send(answer)


def _do(job: ScoringJob, asker: Asker) -> _Done:
    positions = 0
    # One clock for all processes of a machine.
    started = time.monotonic()
    for _ in range(job.passes):
        for sequences in job.requests:
            positions += sum(map(len, asker.ask(sequences)))
    ended = time.monotonic()
    wanted = job.passes * sum(len(ids) - 1 for request in job.requests for ids in request)
    if positions != wanted:
        raise ClientError(f"{job.server} gave {positions} rows where {wanted} were asked for")
    return _Done(started, ended, positions)


@asynccontextmanager
async def gateway_stubs(target: str, count: int) -> AsyncIterator[tuple[list[Any], str]]:
    """Stubs with a connection each, and the tokenizer's fingerprint."""
    options = [
        # Else channels of one process share their connections.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
    ]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(count)]
    stubs: list[Any] = [TeacherServiceStub(channel) for channel in channels]
    try:
        about = await stubs[0].GetTeacher(pb.GetTeacherRequest())
        yield stubs, about.tokenizer_fingerprint
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))

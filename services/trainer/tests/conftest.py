"""A tiny tokenizer, a tiny recipe, and a real gRPC teacher whose distribution is known exactly."""

import asyncio
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.rpc import status_pb2  # type: ignore[import-untyped]
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.io import save_pretrained
from latentforge.model.losses import StudentBatch
from latentforge.model.sparse_kd import KdTargets, sparse_losses
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.wire import dtype_from_proto, rows_to_proto
from latentforge.text.fingerprint import tokenizer_fingerprint
from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.cli.main import app
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.status import Status
from latentforge.trainer.teacher import rows as rows_module
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.rows import TeacherRows
from tests.fixtures import corpus, packed, restored_logging, tokenizer, tokenizer_folder

__all__ = ["corpus", "packed", "restored_logging", "tokenizer", "tokenizer_folder"]

VOCAB = 260
TOP_K = 4
# <|pad|>, <|im_end|>
PAD, END = 1, 3
# A row's probabilities in order; the rest of the mass is spread evenly over all other ids.
TOP = np.array([0.5, 0.2, 0.1, 0.05])

TINY_RECIPE = """
name = "tiny"
chunk_size = 4
[data]
sequence_length = 32
[teacher]
top_k = 4
logprob_dtype = "float32"
[teacher.generate]
prompts = 12
held_out_prompts = 3
max_tokens = 10
prompt_tokens = 4
instruction = "Go"
[autoencoder]
validate_every = 4
save_every = 4
validation_chunks = 32
pad_share = 0.1
[autoencoder.model]
latent_size = 16
hidden_size = 16
chunk_hidden_size = 32
intermediate_size = 16
[autoencoder.optim]
steps = 12
batch_size = 16
lr = 0.003
warmup_steps = 2
[student]
# The known teacher does not know the text: with more of it a student would unlearn that.
objective = "chunk-kd"
validate_every = 4
save_every = 4
validation_sequences = 2
num_publishes = 3
golden_tokens = 12
[student.model]
embed_size = 8
hidden_size = 16
num_layers = 1
num_heads = 2
num_kv_heads = 1
head_dim = 8
intermediate_size = 16
chunk_decoder = { width = 16, rank = 8 }
induction = { context = 2, size = 8 }
[student.optim]
steps = 12
batch_size = 2
lr = 0.003
warmup_steps = 2
"""


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY_RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def environment(tmp_path: Path, tokenizer_folder: Path, recipe_file: Path) -> dict[str, str]:
    return {
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "TOKENIZER_PATH": str(tokenizer_folder),
        "RECIPES_DIR": str(recipe_file.parent),
        "TRAINER_GATEWAY_PATIENCE_SECONDS": "0",
        "GATEWAY_TARGET": "127.0.0.1:9",
        "TRAINER_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


class ClosedFormTeacher(teacher_pb2_grpc.TeacherServiceServicer):
    """p(x_i | x_<i) depends on x_(i-1) alone and is known in closed form; answers like a gateway, over real gRPC."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.can_score = True
        self.can_generate = True
        #: says of (messages, index) why a continuation is dropped
        self.drop: Callable[[list[tuple[str, str]], int], str] = lambda messages, index: ""
        #: how far rows of Generate are from their place
        self.misplaced = 0
        #: most tokens in a message of Generate
        self.piece = 3
        self.generated: list[pb.GenerateRequest] = []
        self.tokenizer: TextTokenizer | None = None
        self.max_top_k = TOP_K
        self.vocab_size = VOCAB
        self.revision = "1"
        self.bos_id: int | None = None
        self.unavailable = 0
        self.fail_with: grpc.StatusCode | None = None
        #: says of a sequence whether the teacher fails on it, each time
        self.poisoned: Callable[[list[int]], bool] = lambda ids: False
        self.requests: list[list[list[int]]] = []
        self._seen: set[tuple[int, ...]] = set()
        self._cached = 0
        self.port = 0

    def forget(self) -> None:
        """What it was asked, so that nothing of it is cached."""
        for asked in (self.requests, self.generated, self._seen):
            asked.clear()

    @staticmethod
    def best(previous: int, rank: int) -> int:
        """The id of a rank (0 is the likeliest) after ``previous``."""
        return (7 * previous + 3 + 11 * rank) % VOCAB

    @classmethod
    def dense(cls, tokens: Tensor) -> Tensor:
        """Log probabilities [L, V] for each token given the one before it; row 0 is uniform."""
        rest = (1 - TOP.sum()) / (VOCAB - TOP_K)
        probabilities = torch.full((len(tokens), VOCAB), rest)
        for i in range(1, len(tokens)):
            for rank in range(TOP_K):
                probabilities[i, cls.best(int(tokens[i - 1]), rank)] = TOP[rank]
        return probabilities.log()

    @classmethod
    def divergence(cls, batch: StudentBatch, move: int = 0) -> Tensor:
        """KD of every token that counts, of a student that knows this teacher exactly; rows ``move`` places off."""
        found = []
        assert batch.kd is not None
        for row, tokens in enumerate(batch.tokens):
            pads = int((tokens != PAD).nonzero()[0])
            logits = torch.zeros(len(tokens), VOCAB)
            logits[pads:] = cls.dense(tokens[pads:])
            moved = KdTargets(**{name: value[row].roll(move, 0) for name, value in vars(batch.kd).items()})
            found.append(sparse_losses(logits, moved, tokens).kd[batch.valid[row] & moved.has_row])
        return torch.cat(found)

    def rows(self, ids: list[int], k: int) -> SparseRows:
        n = len(ids) - 1
        dense = self.dense(torch.tensor(ids))[1:].numpy()
        best = np.array([[self.best(p, r) for r in range(k)] for p in ids[:-1]], dtype=np.uint32)
        masses = np.append(TOP, np.full(VOCAB - TOP_K, (1 - TOP.sum()) / (VOCAB - TOP_K)))[:k]
        return SparseRows(
            first_position=1,
            ids=best,
            logprobs=np.tile(np.log(masses), (n, 1)).astype(np.float32),
            counts=np.full(n, k, dtype=np.uint16),
            realised_logprobs=dense[np.arange(n), ids[1:]].astype(np.float32),
            realised_ranks=np.zeros(n, dtype=np.uint32),
            tail_mass=np.full(n, max(0.0, 1 - masses.sum()), dtype=np.float32),
        )

    def provenance(self, hit: bool) -> pb.Provenance:
        return pb.Provenance(backend="known", model="closed-form", revision=self.revision, cache_hit=hit)

    async def GetTeacher(self, request: Any, context: Any) -> pb.GetTeacherResponse:  # noqa: N802 - gRPC's name
        if self.unavailable > 0:
            self.unavailable -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return pb.GetTeacherResponse(
            backend="known",
            model="closed-form",
            revision=self.revision,
            can_score=self.can_score,
            can_generate=self.can_generate,
            max_top_k=self.max_top_k,
            max_sequence_length=512,
            vocab_size=self.vocab_size,
            tokenizer_fingerprint=self.fingerprint,
            bos_id=self.bos_id,
        )

    async def ScoreBatch(self, request: pb.ScoreBatchRequest, context: Any) -> Any:  # noqa: N802
        if self.fail_with is not None:
            await context.abort(self.fail_with, "refused")
        if request.tokenizer_fingerprint != self.fingerprint:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another tokenizer")
        sequences = [list(s.ids) for s in request.sequences]
        self.requests.append(sequences)
        # The last sequence first: answers may come in any order.
        for index in reversed(range(len(sequences))):
            key = tuple(sequences[index])
            if max(key) >= VOCAB:
                text = f"sequences[{index}].ids: has id {max(key)}; ids are 0 to {VOCAB - 1}"
                refusal = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message=text)
                yield pb.ScoreBatchResponse(index=index, error=refusal)
                continue
            if self.poisoned(sequences[index]):
                failure = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="the teacher failed: nan")
                yield pb.ScoreBatchResponse(index=index, error=failure)
                continue
            hit = key in self._seen
            self._seen.add(key)
            self._cached += hit
            rows = rows_to_proto(self.rows(sequences[index], request.top_k), dtype_from_proto(request.logprob_dtype))
            score = pb.ScoreResponse(rows=rows, provenance=self.provenance(hit))
            yield pb.ScoreBatchResponse(index=index, score=score)

    async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the trainer asks for batches")

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> Any:  # noqa: N802
        """Draws from the closed form; a rank beyond those known ends the text with <|im_end|>."""
        self.generated.append(request)
        if self.fail_with is not None:
            await context.abort(self.fail_with, "refused")
        assert self.tokenizer is not None
        messages = [{"role": m.role, "content": m.content} for m in request.chat.messages]
        if request.WhichOneof("prompt") == "token_ids":
            prompt_ids = list(request.token_ids.ids)
        elif request.WhichOneof("prompt") == "text":
            prompt_ids = self.tokenizer.begin(self.tokenizer.encode_texts([request.text])[0])
        else:
            prompt_ids = self.tokenizer.encode_chat(messages, to_answer=True)
        dtype = dtype_from_proto(request.logprob_dtype)
        for index in range(request.n or 1):
            why = self.drop([(m["role"], m["content"]) for m in messages], index)
            random = np.random.default_rng([request.seed, index])
            ids = list(prompt_ids)
            while len(ids) - len(prompt_ids) < request.max_tokens and (len(ids) == len(prompt_ids) or ids[-1] != END):
                rank = int(random.choice(TOP_K + 1, p=[*TOP, 1 - TOP.sum()])) if request.temperature else 0
                ids.append(END if rank == TOP_K else self.best(ids[-1], rank))
            whole = self.rows(ids, request.top_k)
            for first in range(len(prompt_ids), len(ids), self.piece):
                stop = min(first + self.piece, len(ids))
                rows = rows_to_proto(whole.part(first - 1, stop - 1), dtype)
                rows.first_position += self.misplaced
                reason = pb.FINISH_REASON_STOP if ids[-1] == END else pb.FINISH_REASON_LENGTH
                if why:
                    # Seen at the end, after its tokens were sent.
                    reason = pb.FINISH_REASON_DROPPED
                yield pb.GenerateResponse(
                    index=index,
                    token_ids=ids[first:stop],
                    rows=rows,
                    finish_reason=reason if stop == len(ids) else pb.FINISH_REASON_UNSPECIFIED,
                    detail=why if stop == len(ids) else "",
                    prompt_token_ids=prompt_ids if first == len(prompt_ids) else [],
                    provenance=self.provenance(False) if first == len(prompt_ids) else None,
                )

    Tokenize = Detokenize = Score

    async def GetCacheStats(self, request: Any, context: Any) -> pb.GetCacheStatsResponse:  # noqa: N802
        return pb.GetCacheStatsResponse(
            kind="memory", healthy=True, hits=self._cached, bytes=2_500_000, saved_seconds=1.5
        )


@pytest.fixture
def known_teacher(tokenizer_folder: Path, tokenizer: TextTokenizer) -> Iterator[ClosedFormTeacher]:
    """Serves on a free port from a thread of its own, because the trainer blocks the test's."""
    teacher = ClosedFormTeacher(tokenizer_fingerprint(tokenizer_folder))
    teacher.tokenizer = tokenizer
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> grpc.aio.Server:
        server = grpc.aio.server()
        teacher_pb2_grpc.add_TeacherServiceServicer_to_server(teacher, server)
        teacher.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield teacher
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def short_documents(tmp_path: Path, tokenizer: TextTokenizer) -> PackedData:
    """Sequences of 32 in which one to four documents lie."""
    path = tmp_path / "short.jsonl"
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh (:="), size=random.integers(4, 40))) for _ in range(120)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pack_jsonl(path, tmp_path / "short", tokenizer, sequence_length=32, chunk_size=4, split="train")
    return PackedData(tmp_path / "short")


@pytest.fixture(scope="session")
def bos_tokenizer_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' tokenizer, with sequences that begin with <|im_start|>, id 2."""
    folder = tmp_path_factory.mktemp("bos") / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"bos_token": "<|im_start|>", "add_bos_token": True}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def bos_packed(bos_tokenizer_folder: Path, corpus: Path, tmp_path: Path) -> PackedData:
    """The corpus in sequences that begin with bos."""
    tokenizer = TextTokenizer(bos_tokenizer_folder)
    pack_jsonl(corpus, tmp_path / "bos-packed", tokenizer, sequence_length=32, chunk_size=4, split="train")
    return PackedData(tmp_path / "bos-packed")


@dataclass
class RunMaker:
    """Makes runs below one temporary folder."""

    root: Path
    recipe_file: Path
    tokenizer: TextTokenizer
    output: io.StringIO = field(default_factory=io.StringIO)

    def __call__(
        self,
        name: str = "tiny",
        *,
        port: int = 1,
        stop_at: tuple[str, int] | None = None,
        overrides: dict[str, Any] | None = None,
        patience: float = 5.0,
        ahead: int = 6,
    ) -> RunContext:
        """``stop_at`` asks the run to stop once a stage has done so many steps."""
        settings = TrainerSettings(
            gateway_target=f"127.0.0.1:{port}",
            checkpoints_dir=self.root / "checkpoints",
            runs_dir=self.root / "runs",
            tokenizer_path=self.tokenizer.folder,
            trainer_threads=1,
            trainer_prefetch_batches=ahead,
            trainer_gateway_patience_seconds=patience,
        )
        recipe = load_recipe(str(self.recipe_file), Path(), overrides)
        console = Console(file=self.output, width=200)
        status = Status(name)

        def stop() -> bool:
            return stop_at is not None and status.stage == stop_at[0] and status.step >= stop_at[1]

        return RunContext(name, recipe, settings, self.tokenizer, status, stop, console)


@pytest.fixture
def make_run(tmp_path: Path, recipe_file: Path, tokenizer: TextTokenizer) -> Iterator[RunMaker]:
    threads = torch.get_num_threads()
    yield RunMaker(tmp_path, recipe_file, tokenizer)
    torch.set_num_threads(threads)


@pytest.fixture
def autoencoder(make_run: RunMaker, tmp_path: Path) -> Path:
    """The folder of an autoencoder of the tiny recipe, as it is before any training."""
    torch.manual_seed(0)
    save_pretrained(Autoencoder(make_run().recipe.autoencoder_config(VOCAB, PAD)), tmp_path / "ae")
    return tmp_path / "ae"


@pytest.fixture
def teacher_rows(known_teacher: ClosedFormTeacher) -> Iterator[TeacherRows]:
    with TeacherLink(f"127.0.0.1:{known_teacher.port}", patience=5.0) as link:
        yield TeacherRows(link, TOP_K, dtype="float32")


@pytest.fixture
def known_rows() -> type[ClosedFormTeacher]:
    return ClosedFormTeacher


@pytest.fixture
def score(
    known_teacher: Any, make_run: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs `trainer score` on data; gives its exit code and what it says."""
    monkeypatch.setenv("TOKENIZER_PATH", str(make_run.tokenizer.folder))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TRAINER_GATEWAY_PATIENCE_SECONDS", "0")
    monkeypatch.setattr(rows_module, "_SECONDS_BEFORE_LAST_TRY", 0.0)

    def run(data: Path, out: Path, *arguments: str, port: int = known_teacher.port) -> tuple[int, str]:
        words = ["score", str(data), "--out", str(out), "--recipe", str(recipe_file), "--gateway", f"127.0.0.1:{port}"]
        result = CliRunner().invoke(app, [*words, *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run

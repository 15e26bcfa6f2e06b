"""A real vLLM on a small Qwen3, a real gateway before it, and transformers on the same weights to compare with."""

import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM

from latentforge.gateway.backends.vllm.command import vllm_command
from latentforge.gateway.main import Gateway
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.sparse_rows import SparseRows
from tools.processes import Child, ChildError
from tools.vllm_env import VENV_PYTHON

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
# Wider than the tokenizer's 260 ids, as output layers are.
VOCAB_SIZE = 300
MAX_MODEL_LEN = 256
LONGEST = MAX_MODEL_LEN - 1
MAX_TOP_K = 64
# bfloat16 has 8 bits: of logits below 16, two ways to compute them differ by some of the last one, 1/16.
TOLERANCE = 0.3
MEAN_TOLERANCE = 0.03
_START_SECONDS = 400.0


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny-qwen3"
    vocabulary = {c: i for i, c in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}'
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=0,
        pad_token_id=1,
    )
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


class VllmServer:
    """The server that ``teacher-gateway serve-vllm`` starts, in a process group that can be killed."""

    def __init__(self, settings: GatewaySettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self.url = settings.vllm_local_url
        self._child: Child | None = None

    def start(self) -> None:
        # Compiling would take longer than everything that is asked here.
        self.start_child([*vllm_command(self._settings), "--enforce-eager"], {})

    def start_child(self, command: Sequence[str], more: dict[str, str]) -> None:
        """Starts a command line of vLLM's server, with these variables besides."""
        env = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            **more,
        }
        self._child = Child("vLLM", command, log=self._log, env=env)

    def wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._child is not None
            self._child.check()
            if time.monotonic() > deadline:
                raise ChildError(f"vLLM did not start within {_START_SECONDS:.0f} s; see {self._log}")
            time.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL for the server and its engine."""
        assert self._child is not None
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.stop(grace=10)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running_vllm(folder: Path, log: Path, **settings: Any) -> Iterator[VllmServer]:
    """A server of the model in ``folder`` at a free port, until the end of the block."""
    if not VENV_PYTHON.is_file():
        pytest.fail("there is no vLLM here; make test-vllm installs it, or: python -m tools.vllm_env")
    chosen = GatewaySettings(
        vllm_local_url=f"http://127.0.0.1:{free_port()}",
        vllm_local_model=str(folder),
        vllm_max_model_len=MAX_MODEL_LEN,
        vllm_python=VENV_PYTHON,
        max_top_k=MAX_TOP_K,
        **settings,
    )
    server = VllmServer(chosen, log)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def vllm(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with running_vllm(model_folder, tmp_path_factory.mktemp("vllm") / "vllm.log") as server:
        yield server


@asynccontextmanager
async def running_gateway(server: VllmServer, tokenizer: Path, **changes: Any) -> AsyncIterator[TeacherClient]:
    """A gateway before the server, and a client of it that asks once."""
    defaults: dict[str, Any] = {
        "teacher_backend": "vllm-remote",
        "vllm_remote_url": server.url,
        "tokenizer_path": tokenizer,
        "gateway_port": 0,
        "cache_url": "none",
        "max_top_k": MAX_TOP_K,
    }
    gateway = Gateway(GatewaySettings(**(defaults | changes)))
    await gateway.start()
    try:
        await gateway.load()
        async with TeacherClient(f"127.0.0.1:{gateway.port}", timeout=120, attempts=1) as client:
            yield client
    finally:
        await gateway.stop()


class RunGateway(Protocol):
    def __call__(self, **changes: Any) -> AbstractAsyncContextManager[TeacherClient]: ...


@pytest.fixture
def run_gateway(vllm: VllmServer, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunGateway:
    """Starts a gateway before the server and gives a client that asks once."""
    monkeypatch.chdir(tmp_path)
    return partial(running_gateway, vllm, model_folder)


@pytest.fixture
async def client(run_gateway: RunGateway) -> AsyncIterator[TeacherClient]:
    async with run_gateway() as connected:
        yield connected


class Reference:
    """transformers on the same weights, in float32."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        """[L−1, v]: ln p(· | tokens before it) for tokens 1 … L−1."""
        with torch.no_grad():
            logits = self._model(torch.tensor([list(token_ids)])).logits[0, :-1]
        result: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
        return result

    def check(self, rows: SparseRows, token_ids: Sequence[int], top_k: int) -> None:
        """Every number of every row, within what bfloat16 leaves open."""
        assert rows.first_position == 1
        assert rows.ids.shape == (len(token_ids) - 1, top_k)
        self.check_at(rows, self.logprobs(token_ids), token_ids[1:])

    @staticmethod
    def check_at(rows: SparseRows, expected_nv: NDArray[np.float64], realised: Sequence[int]) -> None:
        top_k = rows.top_k
        assert (rows.counts == top_k).all()
        assert all(len(set(ids)) == top_k for ids in rows.ids.tolist())
        of_ids = np.take_along_axis(expected_nv, rows.ids.astype(np.int64), axis=1)
        assert np.abs(rows.logprobs - of_ids).max() < TOLERANCE
        assert np.abs(rows.logprobs - of_ids).mean() < MEAN_TOLERANCE
        # Whatever has rank r is as probable as the r-th most probable.
        best = -np.sort(-expected_nv, axis=1)[:, :top_k]
        assert np.abs(of_ids - best).max() < TOLERANCE
        own = expected_nv[np.arange(len(realised)), list(realised)]
        assert np.abs(rows.realised_logprobs - own).max() < TOLERANCE
        known = rows.realised_ranks > 0
        surely_before = (expected_nv > own[:, None] + TOLERANCE).sum(axis=1)
        perhaps_before = (expected_nv > own[:, None] - TOLERANCE).sum(axis=1)
        assert (rows.realised_ranks > surely_before)[known].all()
        assert (rows.realised_ranks <= perhaps_before)[known].all()
        inside = rows.realised_ranks <= top_k
        for r in np.flatnonzero(known & inside):
            assert rows.ids[r, rows.realised_ranks[r] - 1] == realised[int(r)]
        assert np.abs(rows.tail_mass - (1 - np.exp(rows.logprobs.astype(np.float64)).sum(axis=1))).max() < 1e-5


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)

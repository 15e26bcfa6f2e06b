"""A causal LM in this process, run by transformers: the backends ``embedded`` and ``transformers``."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from latentforge.core.devices import choose_device
from latentforge.gateway.backends.base import (
    BackendError,
    CandidateIds,
    CandidateRows,
    ContinuationRequest,
    LoadedBackend,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.backends.local.generation import Continuations, memory_of
from latentforge.gateway.backends.local.loading import whole_model
from latentforge.gateway.backends.local.text_part import text_part, whole_logits
from latentforge.gateway.backends.local.topk import rows_of_hidden
from latentforge.gateway.backends.local.weights import read_weights
from latentforge.gateway.backends.weight_files import WeightFiles, find_weights
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer

T = TypeVar("T")

# One is computed. A GPU has the next beside it, so as not to wait for the event loop between two.
_BATCHES_AT_ONCE = {"cpu": 1, "cuda": 2}


class TransformersBackend(LoadedBackend):
    """Owns the model. All its work is done by one thread, so that the event loop stays free."""

    def __init__(self, settings: GatewaySettings, model: str, setting: str, *, hub: bool) -> None:
        """``model`` is a folder or, if ``hub``, a hub id; ``setting`` names what gave it."""
        self._settings = settings
        self._model_name = model
        self._setting = setting
        self._hub = hub
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    async def load(self) -> None:
        await self._in_thread(self._load)

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        answers = await self._in_thread(lambda: self._score(sequences, top_k, [None] * len(sequences)))
        return [answer.rows for answer in answers]

    async def score_candidates(
        self, sequences: Sequence[TokenIds], top_k: int, candidates: Sequence[CandidateIds | None]
    ) -> list[CandidateRows]:
        return await self._in_thread(lambda: self._score(sequences, top_k, candidates))

    async def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        continuations = await self._in_thread(
            lambda: Continuations(self._model, self._logits, self._tokenizer, self._eos_ids, request)
        )
        # One step at a time, so that others' forward passes come in between and a cancelled call stops at once.
        while not continuations.finished:
            for piece in await self._in_thread(continuations.step):
                yield piece

    async def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                with torch.inference_mode():
                    return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
                raise BackendError(f"{reason}; lower MAX_BATCH_TOKENS or MAX_SEQUENCE_LENGTH") from None

        return await asyncio.get_running_loop().run_in_executor(self._executor, guarded)

    def _load(self) -> None:
        settings = self._settings
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        files = find_weights(self._model_name, self._setting, hub=self._hub)
        device = torch.device(choose_device("TEACHER_DEVICE", settings.teacher_device, torch.cuda.device_count()))
        dtype = _dtype(settings.teacher_dtype, device)
        transformers.utils.logging.disable_progress_bar()
        try:
            self._tokenizer = TextTokenizer(files.folder)
            weights = read_weights(files)
            model = whole_model(weights, dtype)
        except (BackendError, OSError, ValueError, KeyError, SafetensorError) as error:
            raise BackendError(f"{self._setting}={self._model_name} cannot be loaded: {error}") from None
        model = model.to(device).eval()
        self._model = text_part(model)
        self._description = self._describe(files, weights.revision, device, dtype)
        self._eos_ids = _eos_ids(self._model)
        self._check_output_layer(model)

    def _describe(
        self, files: WeightFiles, revision: str, device: torch.device, dtype: torch.dtype
    ) -> TeacherDescription:
        vocab_size = int(self._model.get_output_embeddings().weight.shape[0])
        name = str(dtype).removeprefix("torch.")
        return TeacherDescription(
            backend=self._settings.teacher_backend,
            model=files.name,
            revision=revision,
            quantization=self._settings.teacher_quantization,
            engine=f"transformers {transformers.__version__}, torch {torch.__version__}, {device.type} {name}",
            compute_dtype=name,
            can_score=True,
            can_generate=self._remembers(),
            max_top_k=min(self._settings.max_top_k, vocab_size),
            max_sequence_length=self._longest(files.name),
            vocab_size=vocab_size,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            batches_at_once=_BATCHES_AT_ONCE.get(device.type, 1),
            can_score_candidates=True,
        )

    def _remembers(self) -> bool:
        """A family that keeps nothing of what it has read would read all of it anew for each token."""
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._model.device)
        return memory_of(self._model.base_model(ids, use_cache=True)) is not None

    def _longest(self, name: str) -> int:
        """Families whose positions have no end, as Mamba's and Bloom's, do not say how long a sequence may be."""
        longest: int | None = getattr(self._model.config, "max_position_embeddings", None)
        asked = self._settings.max_sequence_length
        if longest is None and asked is None:
            raise BackendError(
                f"the configuration of {name} has no max_position_embeddings, so nothing says how long a sequence it "
                "takes; set MAX_SEQUENCE_LENGTH"
            )
        if longest is not None and asked is not None and asked > longest:
            raise BackendError(f"MAX_SEQUENCE_LENGTH={asked} is more than the {longest} that {name} was made for")
        return int(asked or longest or 0)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., h] to float32 logits [..., v], with what some families do after their output layer."""
        config = self._model.config
        logits: Tensor = self._model.get_output_embeddings()(hidden).float()
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _check_output_layer(self, model: Any) -> None:
        """A family whose head does something that ``_logits`` does not know must be refused, not scored wrongly."""
        ids = torch.arange(8, device=self._model.device)[None] % self._description.vocab_size
        expected = whole_logits(model, ids)
        ours = self._logits(self._model.base_model(ids, use_cache=False).last_hidden_state)
        if not torch.allclose(ours, expected, rtol=1e-2, atol=1e-2, equal_nan=True):
            kind = self._model.config.model_type
            raise BackendError(f"{self._setting}={self._model_name}: the logits of the {kind} family are not supported")

    def _score(
        self, sequences: Sequence[TokenIds], top_k: int, candidates: Sequence[CandidateIds | None]
    ) -> list[CandidateRows]:
        longest_first = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        answers: dict[int, CandidateRows] = {}
        while longest_first:
            fits = max(1, self._settings.max_batch_tokens // len(sequences[longest_first[0]]))
            batch, longest_first = longest_first[:fits], longest_first[fits:]
            computed = self._forward([sequences[i] for i in batch], top_k, [candidates[i] for i in batch])
            answers.update(zip(batch, computed, strict=True))
        return [answers[i] for i in range(len(sequences))]

    def _forward(
        self, sequences: Sequence[TokenIds], top_k: int, candidates: Sequence[CandidateIds | None]
    ) -> list[CandidateRows]:
        lengths = np.array([len(s) for s in sequences])
        # Padded on the right: attention is causal, so no real position ever sees the padding.
        tokens_np = np.zeros((len(sequences), lengths.max()), np.int64)
        for row, sequence in enumerate(sequences):
            tokens_np[row, : len(sequence)] = sequence
        # The last real position of each sequence predicts a token that is not there.
        used = np.arange(lengths.max())[None, :] < lengths[:, None] - 1
        device = self._model.device
        tokens_bl = torch.from_numpy(tokens_np).to(device)
        hidden_blh = self._model.base_model(tokens_bl, use_cache=False).last_hidden_state
        used_bl = torch.from_numpy(used).to(device)
        realised_n = tokens_bl[:, 1:][used_bl[:, :-1]]
        return rows_of_hidden(
            hidden_blh[used_bl],
            realised_n,
            (lengths - 1).tolist(),
            top_k,
            self._logits,
            self._description.vocab_size,
            candidates,
        )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _eos_ids(model: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

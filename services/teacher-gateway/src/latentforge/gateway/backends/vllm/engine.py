"""vLLM's engine inside the gateway: ``vllm-local`` with VLLM_LOCAL_MODE=in-process. Needs vllm in this Python."""

import asyncio
import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import (
    BackendError,
    ContinuationRequest,
    FailureKind,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.backends.continuations import FINISH_REASONS, ContinuingBackend, gather, stops, text_of
from latentforge.gateway.backends.identity import digest
from latentforge.gateway.backends.model_folder import ModelFiles, read_model_files, tokenizer_folder
from latentforge.gateway.backends.rows import WrongRowsError, entries_of, rows_of
from latentforge.gateway.backends.vllm.answers import prompt_rows, wrong_rows
from latentforge.gateway.backends.vllm.command import STEP_TOKENS, chosen_kernels, gpu_arguments, served_name
from latentforge.gateway.backends.vllm.model import describe
from latentforge.gateway.backends.vllm.versions import check_version
from latentforge.gateway.backends.weight_files import WeightFiles, find_weights, revision_of, stamp_of
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import SparseRows

_DEAD = "vLLM's engine died; restart the gateway"


class VllmEngineBackend(ContinuingBackend):
    """Owns an engine, whose work is done by a process of its own; only ids and log-probabilities come over."""

    def __init__(self, settings: GatewaySettings) -> None:
        """
        Raises:
            SettingsError: VLLM_LOCAL_MODEL is not set.
        """
        if settings.vllm_local_model is None:
            raise SettingsError(
                "VLLM_LOCAL_MODEL is not set; VLLM_LOCAL_MODE=in-process needs a model's folder or hub id"
            )
        self._settings = settings
        self._model = settings.vllm_local_model
        self._engine: Any = None
        self._numbers = itertools.count()

    async def load(self) -> None:
        self._files = await asyncio.to_thread(read_model_files, tokenizer_folder(self._settings))
        self._tokenizer = self._files.tokenizer
        top_k = min(self._settings.max_top_k, self._files.config.vocab_size)
        self._vllm = _import_vllm()
        check_version(str(self._vllm.__version__), self._files.config, "VLLM_LOCAL_MODE=in-process")
        before = self._stamp()
        self._engine = await asyncio.to_thread(self._start, top_k)
        revision = await asyncio.to_thread(self._weights_revision)
        if self._stamp() != before:
            text = f"VLLM_LOCAL_MODEL={self._model} was written to while vLLM read it; start the gateway again"
            raise BackendError(text)
        config, version = self._engine.model_config, str(self._vllm.__version__)
        self._description = describe_engine(self._settings, self._files, config, version=version, weights=revision)
        theirs = int(config.get_vocab_size())
        if theirs != self._files.config.vocab_size:
            raise BackendError(
                f"the output layer of {self._model} has {theirs} ids, and config.json of "
                f"TOKENIZER_PATH={tokenizer_folder(self._settings)} says {self._files.config.vocab_size}",
                FailureKind.MISCONFIGURED,
            )

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        return await gather(self._score(ids, top_k) for ids in sequences)

    async def check(self) -> None:
        try:
            await self._engine.check_health()
        except self._vllm.v1.engine.exceptions.EngineDeadError:
            raise BackendError(_DEAD, FailureKind.GONE) from None

    async def close(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    def _start(self, top_k: int) -> Any:
        settings = self._settings
        arguments = self._vllm.AsyncEngineArgs(
            model=self._model,
            tokenizer=str(tokenizer_folder(settings)),
            dtype=settings.teacher_dtype,
            quantization=None if settings.vllm_quantization == "none" else settings.vllm_quantization,
            max_model_len=settings.vllm_max_model_len,
            **gpu_arguments(settings),
            **chosen_kernels(settings),
            enable_prefix_caching=False,
            max_num_batched_tokens=STEP_TOKENS,
            max_logprobs=top_k,
            logprobs_mode="raw_logprobs",
            # What the model's author likes must not shape what the teacher says.
            generation_config="vllm",
            disable_log_stats=True,
        )
        try:
            return importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(arguments)
        except Exception as error:  # an engine's start fails in as many ways as it has parts
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BackendError(f"vLLM cannot run VLLM_LOCAL_MODEL={self._model}: {reason}") from None

    def _weights_revision(self) -> str:
        return revision_of(find_weights(self._model, "VLLM_LOCAL_MODEL", hub=True))

    def _stamp(self) -> object:
        """Of a folder's files: vLLM loads what it finds there, and the gateway must not name other weights."""
        folder = Path(self._model)
        return stamp_of(WeightFiles(folder, folder.name)) if (folder / "config.json").is_file() else None

    async def _score(self, token_ids: TokenIds, top_k: int) -> SparseRows:
        output = await self._run(token_ids, max_tokens=1, temperature=0.0, prompt_logprobs=top_k)
        vocab_size = self._description.vocab_size
        return await asyncio.to_thread(prompt_rows, output.prompt_logprobs, token_ids, top_k, vocab_size)

    async def _continue(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        output = await self._run(
            request.prompt_ids,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=seed,
            logprobs=request.top_k or None,
            detokenize=True,
            **stops(request, self.tokenizer),
        )
        done = output.outputs[0]
        reason = FINISH_REASONS.get(done.finish_reason)
        if reason is None:
            raise BackendError(f"vLLM ended a continuation with {done.finish_reason!r}", FailureKind.GONE)
        token_ids = [int(token_id) for token_id in done.token_ids]
        rows = None
        if request.top_k:
            start = len(request.prompt_ids)
            try:
                entries = entries_of(done.logprobs, start)
                realised = np.array(token_ids, np.uint32)
                rows = rows_of(entries, realised, start, request.top_k, self._description.vocab_size)
            except WrongRowsError as error:
                raise wrong_rows(error) from None
        text = text_of(token_ids, reason, done.stop_reason, request, self.tokenizer)
        return Piece(index, token_ids, text, rows, reason)

    async def _run(self, token_ids: TokenIds, *, detokenize: bool = False, **sampling: Any) -> Any:
        """The whole output for one prompt. A cancelled caller takes the request out of the engine."""
        parameters = self._vllm.SamplingParams(
            n=1, detokenize=detokenize, output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY, **sampling
        )
        prompt = {"prompt_token_ids": token_ids.tolist()}
        try:
            outputs = [o async for o in self._engine.generate(prompt, parameters, f"gateway-{next(self._numbers)}")]
        except ValueError as error:
            raise BackendError(f"vLLM refuses: {error}", FailureKind.REFUSED) from None
        except self._vllm.v1.engine.exceptions.EngineDeadError:
            raise BackendError(_DEAD, FailureKind.GONE) from None
        except self._vllm.v1.engine.exceptions.EngineGenerateError as error:
            raise BackendError(f"vLLM failed: {error}") from None
        return outputs[-1]


def describe_engine(
    settings: GatewaySettings, files: ModelFiles, config: Any, *, version: str, weights: str
) -> TeacherDescription:
    """
    Args:
        config: the engine's ModelConfig, which knows the dtype that TEACHER_DTYPE=auto has become.
        version: vLLM's.
        weights: their revision.

    Raises:
        BackendError: MAX_SEQUENCE_LENGTH is more than the engine takes.
    """
    assert settings.vllm_local_model is not None
    return describe(
        settings,
        files,
        model=served_name(settings.vllm_local_model),
        revision=digest(weights, version, settings.vllm_revision),
        engine=f"vllm {version} in-process",
        compute_dtype=str(config.dtype).removeprefix("torch."),
        max_model_len=int(config.max_model_len),
    )


def _import_vllm() -> Any:
    try:
        importlib.import_module("vllm.v1.engine.exceptions")
        return importlib.import_module("vllm")
    except ImportError as error:
        raise BackendError(
            f"VLLM_LOCAL_MODE=in-process, and vllm cannot be imported here ({error}); install it into this Python, or "
            "use VLLM_LOCAL_MODE=server with make serve-vllm-local",
            FailureKind.MISCONFIGURED,
        ) from None

"""What the gateway must know of a model that vLLM runs: its tokenizer, its output layer, and a text to try it with."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from latentforge.gateway.backends.base import BackendError, FailureKind, TeacherDescription
from latentforge.gateway.backends.model_folder import ModelConfig, read_config
from latentforge.gateway.settings import GatewaySettings
from latentforge.text.tokenizer import TextTokenizer

# Where tokenizers differ: digits, spaces, case, scripts, and bytes that are no whole character for many of them.
_PROBE = "def f(x1, y_22):\n\treturn  x1 **3000  # Größe, 東京, 🙂 don't\r\n"
_SPECIAL_TOKENS = 32
# Said with each request, since a server takes others from the model's generation_config.json.
SAMPLING = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
GREEDY = {**SAMPLING, "temperature": 0.0, "top_p": 1.0}


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, of which the weights are not read."""

    tokenizer: TextTokenizer
    config: ModelConfig


def read_model_files(folder: Path) -> ModelFiles:
    """
    Raises:
        BackendError: the tokenizer or config.json is missing or unreadable.
    """
    try:
        tokenizer = TextTokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise BackendError(f"TOKENIZER_PATH={folder}: {error}", FailureKind.MISCONFIGURED) from None
    config = read_config(folder)
    if config is None:
        # The tokenizer does not tell: output layers are padded, and rows hold ids of the padding.
        raise BackendError(
            f"TOKENIZER_PATH={folder} has no config.json, which says how wide the output layer is; "
            "copy the model's beside its tokenizer",
            FailureKind.MISCONFIGURED,
        )
    return ModelFiles(tokenizer, config)


def describe(
    settings: GatewaySettings,
    files: ModelFiles,
    *,
    model: str,
    revision: str,
    engine: str,
    compute_dtype: str,
    max_model_len: int,
) -> TeacherDescription:
    """
    Raises:
        BackendError: MAX_SEQUENCE_LENGTH is more than the server takes.
    """
    # vLLM cannot score without generating a token, which counts.
    longest = max_model_len - 1
    asked = settings.max_sequence_length
    if asked is not None and asked > longest:
        raise BackendError(
            f"MAX_SEQUENCE_LENGTH={asked} is more than {longest}, one less than vLLM's --max-model-len",
            FailureKind.MISCONFIGURED,
        )
    return TeacherDescription(
        backend=settings.teacher_backend,
        model=model,
        revision=revision,
        quantization=settings.vllm_quantization,
        engine=engine,
        compute_dtype=compute_dtype,
        can_score=True,
        can_generate=True,
        max_top_k=min(settings.max_top_k, files.config.vocab_size),
        max_sequence_length=asked or longest,
        vocab_size=files.config.vocab_size,
        tokenizer_fingerprint=files.tokenizer.fingerprint,
    )


def digest(*parts: str) -> str:
    """16 hex digits over parts that cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def probe_text(tokenizer: TextTokenizer, room: int) -> tuple[str, list[int]]:
    """A text that tokenizers disagree about, with special tokens in it, and its at most ``room`` ids."""
    text = "".join(tokenizer.special_tokens()[:_SPECIAL_TOKENS]) + _PROBE
    while len(ids := tokenizer.encode(text, parse_special_tokens=True)) > room and len(text) > 1:
        text = text[len(text) // 2 :]
    return text, ids

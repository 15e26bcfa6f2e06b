"""What the gateway must know of a model that vLLM runs: its tokenizer, its output layer, and a text to try it with."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.gateway.backends.base import BackendError, FailureKind, TeacherDescription
from latentforge.gateway.settings import GatewaySettings
from latentforge.gateway.tokenizer import TeacherTokenizer

# Where tokenizers differ: digits, spaces, case, scripts, and bytes that are no whole character for many of them.
_PROBE = "def f(x1, y_22):\n\treturn  x1 **3000  # Größe, 東京, 🙂 don't\r\n"
_SPECIAL_TOKENS = 32


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, of which the weights are not read.

    Attributes:
        vocab_size: width of the output layer, which is often padded beyond the tokenizer's ids.
        dtype: what config.json says that the weights are.
    """

    tokenizer: TeacherTokenizer
    vocab_size: int
    dtype: str


def tokenizer_folder(settings: GatewaySettings) -> Path:
    """TOKENIZER_PATH, or VLLM_LOCAL_MODEL where that is a folder.

    Raises:
        BackendError: neither is set.
    """
    if settings.tokenizer_path is not None:
        return settings.tokenizer_path
    local = settings.vllm_local_model
    if settings.teacher_backend == "vllm-local" and local is not None and Path(local).is_dir():
        return Path(local)
    raise BackendError(
        f"TOKENIZER_PATH is not set; TEACHER_BACKEND={settings.teacher_backend} needs the folder with the teacher's "
        "tokenizer.json and config.json",
        FailureKind.MISCONFIGURED,
    )


def read_model_files(folder: Path) -> ModelFiles:
    """
    Raises:
        BackendError: the tokenizer or config.json is missing or unreadable.
    """
    path = folder / "config.json"
    try:
        tokenizer = TeacherTokenizer(folder)
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        text: dict[str, Any] = config.get("text_config", config)
        vocab_size = int(text["vocab_size"])
    except FileNotFoundError:
        # The tokenizer does not tell: output layers are padded, and rows hold ids of the padding.
        raise BackendError(
            f"TOKENIZER_PATH={folder} has no config.json, which says how wide the output layer is; "
            "copy the model's beside its tokenizer",
            FailureKind.MISCONFIGURED,
        ) from None
    except KeyError:
        raise BackendError(
            f"{path} has no vocab_size; it is not a language model's", FailureKind.MISCONFIGURED
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BackendError(f"TOKENIZER_PATH={folder}: {error}", FailureKind.MISCONFIGURED) from None
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "unknown")
    return ModelFiles(tokenizer, vocab_size, dtype)


def describe(
    settings: GatewaySettings, files: ModelFiles, *, model: str, revision: str, engine: str, max_model_len: int
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
        compute_dtype=files.dtype,
        can_score=True,
        can_generate=True,
        max_top_k=min(settings.max_top_k, files.vocab_size),
        max_sequence_length=asked or longest,
        vocab_size=files.vocab_size,
        tokenizer_fingerprint=files.tokenizer.fingerprint,
    )


def digest(*parts: str) -> str:
    """16 hex digits over parts that cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def probe_text(tokenizer: TeacherTokenizer, room: int) -> tuple[str, list[int]]:
    """A text that tokenizers disagree about, with special tokens in it, and its at most ``room`` ids."""
    text = "".join(tokenizer.special_tokens()[:_SPECIAL_TOKENS]) + _PROBE
    while len(ids := tokenizer.encode(text)) > room and len(text) > 1:
        text = text[len(text) // 2 :]
    return text, ids

"""The folder of a teacher that runs elsewhere: its tokenizer and its configuration, no weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.settings import GatewaySettings
from latentforge.text.tokenizer import TextTokenizer

# Where tokenizers differ: digits, spaces, case, scripts, and bytes that are no whole character for many of them.
_PROBE = "def f(x1, y_22):\n\treturn  x1 **3000  # Größe, 東京, 🙂 don't\r\n"
_SPECIAL_TOKENS = 32


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says.

    Attributes:
        vocab_size: width of the output layer, which is often padded beyond the tokenizer's ids.
        dtype: of the weights, "unknown" if it does not say.
        linear_attention: some layers are gated delta nets, as in Qwen3-Next and Qwen3.5.
    """

    vocab_size: int
    dtype: str
    linear_attention: bool = False


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, of which the weights are not read."""

    tokenizer: TextTokenizer
    config: ModelConfig


def tokenizer_folder(settings: GatewaySettings) -> Path:
    """TOKENIZER_PATH; for vllm-local VLLM_LOCAL_MODEL does where that is a folder.

    Raises:
        SettingsError: neither is set, or there is no tokenizer.
    """
    folder = settings.tokenizer_path
    local = settings.vllm_local_model
    if folder is None and settings.teacher_backend == "vllm-local" and local is not None and Path(local).is_dir():
        folder = Path(local)
    if folder is None:
        raise SettingsError(
            f"TOKENIZER_PATH is not set; TEACHER_BACKEND={settings.teacher_backend} needs the folder with the "
            "teacher's tokenizer.json and config.json"
        )
    if not (folder / "tokenizer.json").is_file():
        raise SettingsError(
            f"TOKENIZER_PATH={folder} has no tokenizer.json; give the folder of the teacher's tokenizer"
        )
    return folder


def read_config(folder: Path) -> ModelConfig | None:
    """None where there is no config.json.

    Raises:
        BackendError: it cannot be read, or is no language model's.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        text: dict[str, Any] = config.get("text_config", config)
        dtype = text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "unknown"
        return ModelConfig(int(text["vocab_size"]), str(dtype), "linear_num_value_heads" in text)
    except FileNotFoundError:
        return None
    except KeyError:
        raise BackendError(
            f"{path} has no vocab_size; it is not a language model's", FailureKind.MISCONFIGURED
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BackendError(f"{path} cannot be read: {error}", FailureKind.MISCONFIGURED) from None


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


def probe_text(tokenizer: TextTokenizer, room: int) -> tuple[str, list[int]]:
    """A text that tokenizers disagree about, with special tokens in it, and its at most ``room`` ids."""
    text = "".join(tokenizer.special_tokens()[:_SPECIAL_TOKENS]) + _PROBE
    while len(ids := tokenizer.encode(text, parse_special_tokens=True)) > room and len(text) > 1:
        text = text[len(text) // 2 :]
    return text, ids

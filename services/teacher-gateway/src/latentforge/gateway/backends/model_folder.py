"""The folder of a teacher that runs elsewhere: its tokenizer and its configuration, no weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.settings import GatewaySettings


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

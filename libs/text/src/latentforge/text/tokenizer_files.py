"""What a tokenizer's folder says, read once and checked: its JSON files and its chat template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.text.errors import TextError

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
# Folders of before transformers 4.40 name the tokens in a file of their own.
_SPECIAL_TOKENS = "special_tokens_map.json"
_MODEL_CONFIGS = ("generation_config.json", "config.json")
# What is read of a folder.
NAMES = (TOKENIZER, CHAT_TEMPLATE, _CONFIG, _SPECIAL_TOKENS, *_MODEL_CONFIGS)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer's folder.

    Attributes:
        content: ``tokenizer.json``.
        named: how tokens with a role are written: ``{"eos_token": "</s>", …}``, which a chat template can name.
        chat_template: Jinja source; None where there is none.
        adds_bos: whether texts begin with the bos token, where the configuration says so; None leaves it to the
            post-processor in ``content``.
        model_eos_ids: ids that end what the model writes, as its own configuration says.
    """

    content: dict[str, Any]
    named: dict[str, str]
    chat_template: str | None
    adds_bos: bool | None
    model_eos_ids: tuple[int, ...]


def read_tokenizer_files(folder: Path, contents: Mapping[str, bytes] | None = None) -> TokenizerFiles:
    """Reads a folder; every file but ``tokenizer.json`` may be missing.

    Args:
        folder: where the files are; with ``contents`` it is only named in errors.
        contents: what they hold, by name, where they have been read already.

    Raises:
        TextError: a file cannot be read, and which.
    """
    if contents is None:
        contents = {name: content for name in NAMES if (content := _read(folder / name)) is not None}
    parsed = {
        name: _parse(folder / name, contents[name]) for name in NAMES if name in contents and name != CHAT_TEMPLATE
    }
    config = parsed.get(_CONFIG, {})
    named = _named(parsed.get(_SPECIAL_TOKENS, {})) | _named(config)
    # Only this flag: add_eos_token alone says nothing of bos (Gemma's folders have both, and a post-processor).
    says = config.get("add_bos_token")
    return TokenizerFiles(
        content=_present(folder, parsed.get(TOKENIZER)),
        named=named,
        chat_template=_chat_template(folder, contents.get(CHAT_TEMPLATE), config.get("chat_template")),
        adds_bos=says and "bos_token" in named if isinstance(says, bool) else None,
        model_eos_ids=_model_eos_ids(parsed),
    )


def read_tokenizer_json(folder: Path) -> dict[str, Any]:
    """What ``tokenizer.json`` holds.

    Raises:
        TextError: the folder has no readable one.
    """
    content = _read(folder / TOKENIZER)
    return _present(folder, None if content is None else _parse(folder / TOKENIZER, content))


def _present(folder: Path, content: dict[str, Any] | None) -> dict[str, Any]:
    if content is None:
        raise TextError(f"{folder} has no {TOKENIZER}; give the folder of a fast tokenizer")
    return content


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error}") from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path} is not a readable {path.name}: {error}") from None
    if not isinstance(parsed, dict):
        raise TextError(f"{path} is not a readable {path.name}: a JSON {type(parsed).__name__}, not an object")
    return parsed


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    named = {}
    for name, value in config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            named[name] = token
    return named


def _chat_template(folder: Path, content: bytes | None, in_config: Any) -> str | None:
    """The file goes before the configuration; of several templates the default is the one."""
    if content is not None:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise TextError(f"{folder / CHAT_TEMPLATE} cannot be read: {error}") from None
    if isinstance(in_config, list):
        in_config = {t.get("name"): t.get("template") for t in in_config if isinstance(t, dict)}.get("default")
    return in_config if isinstance(in_config, str) and in_config else None


def _model_eos_ids(parsed: Mapping[str, dict[str, Any]]) -> tuple[int, ...]:
    for name in _MODEL_CONFIGS:
        config = parsed.get(name, {})
        eos = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
        if eos is not None:
            return tuple(i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int))
    return ()

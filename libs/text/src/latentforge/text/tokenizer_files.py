"""What a tokenizer's folder says, read once and checked: its JSON files and its chat template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.text.errors import TextError

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"


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


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads a folder; every file but ``tokenizer.json`` may be missing.

    Raises:
        TextError: a file cannot be read, and which.
    """
    content = read_tokenizer_json(folder)
    config = _read(folder / "tokenizer_config.json")
    # Folders of before transformers 4.40 name the tokens in a file of their own.
    named = _named(_read(folder / "special_tokens_map.json")) | _named(config)
    # Only this flag: add_eos_token alone says nothing of bos (Gemma's folders have both, and a post-processor).
    says = config.get("add_bos_token")
    return TokenizerFiles(
        content=content,
        named=named,
        chat_template=_chat_template(folder, config.get("chat_template")),
        adds_bos=says and "bos_token" in named if isinstance(says, bool) else None,
        model_eos_ids=_model_eos_ids(folder),
    )


def read_tokenizer_json(folder: Path) -> dict[str, Any]:
    """What ``tokenizer.json`` holds.

    Raises:
        TextError: the folder has no readable one.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise TextError(f"{folder} has no {TOKENIZER}; give the folder of a fast tokenizer")
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TextError(f"{path} is not a readable {path.name}: {error}") from None
    if not isinstance(content, dict):
        raise TextError(f"{path} is not a readable {path.name}: a JSON {type(content).__name__}, not an object")
    return content


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    named = {}
    for name, value in config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            named[name] = token
    return named


def _chat_template(folder: Path, in_config: Any) -> str | None:
    """The file goes before the configuration; of several templates the default is the one."""
    path = folder / CHAT_TEMPLATE
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read: {error}") from None
    if isinstance(in_config, list):
        in_config = {t.get("name"): t.get("template") for t in in_config if isinstance(t, dict)}.get("default")
    return in_config if isinstance(in_config, str) and in_config else None


def _model_eos_ids(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        config = _read(folder / name)
        eos = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
        if eos is not None:
            return tuple(i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int))
    return ()

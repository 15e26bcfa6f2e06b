"""One string for a tokenizer: two tokenizers that give different ids for some text have different fingerprints."""

import hashlib
import json
from pathlib import Path
from typing import Any

# What does not change which ids a text gets.
_IRRELEVANT = {"version", "truncation", "padding", "post_processor", "decoder"}


def tokenizer_fingerprint(folder: Path) -> str:
    """Sha256, in hex, of a folder's ``tokenizer.json`` in canonical form.

    Vocabulary, merges, normaliser, pre-tokeniser and added tokens count; formatting, key order, the two spellings of
    merges and what acts only after ids exist do not.

    Raises:
        ValueError: the folder has no readable ``tokenizer.json``.
    """
    path = folder / "tokenizer.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no tokenizer.json; give the folder of a fast tokenizer") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from None
    relevant = {key: value for key, value in content.items() if key not in _IRRELEVANT}
    model = relevant.get("model")
    if isinstance(model, dict) and "merges" in model:
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()

"""One string for a tokenizer: two tokenizers that give different ids for some text have different fingerprints."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentforge.text.tokenizer_files import read_tokenizer_json

# What does not change which ids a text gets.
_IRRELEVANT = {"version", "truncation", "padding", "post_processor", "decoder"}


def tokenizer_fingerprint(folder: Path) -> str:
    """Sha256, in hex, of a folder's ``tokenizer.json`` in canonical form.

    Raises:
        TextError: the folder has no readable ``tokenizer.json``.
    """
    return fingerprint_of(read_tokenizer_json(folder))


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Of what a ``tokenizer.json`` holds.

    Vocabulary, merges, normaliser, pre-tokeniser and added tokens count; formatting, key order, the two spellings of
    merges and what acts only after ids exist do not.
    """
    relevant = {key: value for key, value in content.items() if key not in _IRRELEVANT}
    model = relevant.get("model")
    if isinstance(model, dict) and "merges" in model:
        relevant["model"] = model | {"merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]}
    canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()

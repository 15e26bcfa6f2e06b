"""A tokenizer that knows its control tokens by another spelling, and by no other."""

import re
from collections.abc import Mapping
from typing import Any

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def unknown_literal(model: Mapping[str, Any]) -> str | None:
    """How the token of a ``tokenizer.json``'s model is written that stands for what it has no token for."""
    if isinstance(model["vocab"], list):
        return None if model.get("unk_id") is None else str(model["vocab"][model["unk_id"]][0])
    unknown: str | None = model.get("unk_token")
    return unknown


def respelled(content: Mapping[str, Any], literals: Mapping[int, str], spellings: Mapping[int, str]) -> dict[str, Any]:
    """A ``tokenizer.json`` that differs in nothing but how its control tokens are written.

    They are renamed among the added tokens, with their flags, and in the model too. Left there, a model would find them
    in plain text by itself: the likeliest pieces of a unigram model, a whole word of a WordPiece one, or two pieces
    that BPE joins. All else about a text, from its first blank to its last, is as it was.

    Args:
        content: of ``tokenizer.json``.
        literals: how control tokens are written, by id.
        spellings: what they are called instead.
    """
    model: dict[str, Any] = dict(content["model"])
    fallback = bool(model.get("byte_fallback"))
    names = {
        literal: spellings[token_id]
        for token_id, literal in literals.items()
        # Found by name where a text has a byte that no piece covers.
        if not (fallback and _BYTE_PIECE.fullmatch(literal))
    }
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(token, token): token_id for token, token_id in model["vocab"].items()}
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [[a, b] for a, b in merges if not names.keys() & {a, b, a + b[prefix:]}]
    listed = {token["content"] for token in content.get("added_tokens", [])}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}
    added = [
        # What is looked for after the normaliser has been at it might be changed by it.
        token
        | {"content": names.get(token["content"], token["content"])}
        | ({"normalized": False} if token["content"] in names else {})
        for token in content.get("added_tokens", [])
    ]
    added += [
        plain | {"id": token_id, "content": names[literal], "normalized": False}
        for token_id, literal in literals.items()
        if literal in names and literal not in listed
    ]
    nothing = {"truncation": None, "padding": None, "post_processor": None}
    return {**content, **nothing, "model": model, "added_tokens": sorted(added, key=lambda token: token["id"])}

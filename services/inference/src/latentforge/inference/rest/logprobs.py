"""Tokens and their log probabilities in OpenAI's shapes."""

import math
from collections.abc import Sequence

from latentforge.inference.rest.continuations import PlacedToken, token_offsets
from latentforge.inference.rest.prompts import EncodedPrompt
from latentforge.inference.rest.schemas.chat import ChatLogprobs, ChatTokenLogprob, TokenLogprobEntry
from latentforge.inference.rest.schemas.completions import CompletionLogprobs
from latentforge.model.decoding.batch import TextLogprobs
from latentforge.snapshots.snapshot import Snapshot

# JSON knows no infinity; this stands for it in OpenAI's answers.
LEAST_LOGPROB = -9999.0


def token_text(snapshot: Snapshot, token_id: int) -> str:
    """How one token reads; one that is no whole characters as its bytes, ``bytes:\\xe2\\x82``."""
    known = snapshot.tokenizer.token_bytes.get(token_id)
    if known is None:
        return snapshot.tokenizer.decode([token_id])
    try:
        return known.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known)


def prompt_tokens(snapshot: Snapshot, prompt: EncodedPrompt, scored: TextLogprobs) -> list[PlacedToken]:
    """A prompt's tokens with what a scoring of it says; nothing comes before the first, which has none."""
    ids, offsets = prompt.ids, token_offsets(snapshot, prompt.ids, prompt.text)
    first = PlacedToken(ids[0], 0, None, ())
    rest = zip(ids[1:], offsets[1:], scored.logprobs[1:], scored.likeliest[1:], strict=True)
    return [first, *(PlacedToken(*values) for values in rest)]


def completion_logprobs(snapshot: Snapshot, tokens: Sequence[PlacedToken], likeliest: int) -> CompletionLogprobs:
    """The legacy shape: a list for each property, ``likeliest`` alternatives by how they read."""
    return CompletionLogprobs(
        tokens=[token_text(snapshot, token.id) for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[_alternatives(snapshot, token) for token in tokens] if likeliest else None,
        text_offset=[token.offset for token in tokens],
    )


def chat_logprobs(snapshot: Snapshot, tokens: Sequence[PlacedToken]) -> ChatLogprobs:
    def entry(token_id: int, logprob: float) -> TokenLogprobEntry:
        known = snapshot.tokenizer.token_bytes.get(token_id)
        return TokenLogprobEntry(
            token=token_text(snapshot, token_id),
            logprob=_finite(logprob),
            bytes=None if known is None else list(known),
        )

    content = []
    for token in tokens:
        assert token.logprob is not None
        own = entry(token.id, token.logprob)
        others = [entry(*other) for other in token.likeliest]
        content.append(ChatTokenLogprob(**own.model_dump(), top_logprobs=others))
    return ChatLogprobs(content=content)


def _alternatives(snapshot: Snapshot, token: PlacedToken) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    # Where two ids read the same, the likelier one counts; the text's own is told whether likely or not.
    for token_id, logprob in (*token.likeliest, (token.id, token.logprob)):
        found.setdefault(token_text(snapshot, token_id), _finite(logprob))
    return found


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB

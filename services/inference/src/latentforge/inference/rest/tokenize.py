"""POST /tokenize and /detokenize: a checkpoint's tokenizer, as vLLM offers it."""

import asyncio

from fastapi import APIRouter

from latentforge.inference.rest.bodies import bounded_route
from latentforge.inference.rest.logprobs import token_text
from latentforge.inference.rest.openapi import ANSWERS
from latentforge.inference.rest.prompts import PromptError, always_fits, check_bytes, check_ids, encode_chat
from latentforge.inference.rest.schemas.chat import MOST_MESSAGES
from latentforge.inference.rest.schemas.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)
from latentforge.inference.rest.services import Services
from latentforge.snapshots.snapshot import Snapshot


def tokenized(snapshot: Snapshot, body: TokenizeRequest) -> TokenizeAnswer:
    """Ids of a text or a chat.

    Raises:
        PromptError: it has more bytes than a prompt may have, or the chat cannot be rendered.
    """
    if body.messages is not None:
        ids = list(encode_chat(snapshot, [message.as_said for message in body.messages]).ids)
    else:
        assert body.prompt is not None
        check_bytes(snapshot, len(body.prompt.encode()), "prompt")
        ids = snapshot.encode(body.prompt) if body.add_special_tokens else snapshot.tokenizer.encode(body.prompt)
    strings = [token_text(snapshot, token_id) for token_id in ids]
    return TokenizeAnswer(tokens=ids, count=len(ids), max_model_len=always_fits(snapshot), token_strs=strings)


def detokenized(snapshot: Snapshot, body: DetokenizeRequest) -> DetokenizeAnswer:
    """The text of ids.

    Raises:
        PromptError: one is not in the vocabulary, or there are more than a context has.
    """
    if len(body.tokens) > snapshot.max_context_tokens:
        raise PromptError(
            "tokens",
            f"tokens has {len(body.tokens)} ids, but {snapshot.id} takes at most {snapshot.max_context_tokens}",
        )
    check_ids(snapshot, body.tokens, "tokens")
    return DetokenizeAnswer(prompt=snapshot.tokenizer.decode(body.tokens))


def tokenize_router(services: Services) -> APIRouter:
    router = APIRouter(route_class=bounded_route(most_strings=8 * MOST_MESSAGES, most_between=2**18))

    @router.post("/tokenize", responses=ANSWERS)
    async def tokenize(body: TokenizeRequest) -> TokenizeAnswer:
        """The ids of a text, or of a chat with the opening of the assistant's turn."""
        snapshot = await services.snapshot(body.model)
        return await services.engine.prepare(snapshot.decoding, lambda: tokenized(snapshot, body))

    @router.post("/detokenize", responses=ANSWERS)
    async def detokenize(body: DetokenizeRequest) -> DetokenizeAnswer:
        """The text of ids."""
        snapshot = await services.snapshot(body.model)
        return await asyncio.to_thread(detokenized, snapshot, body)

    return router

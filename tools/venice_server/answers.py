"""One choice of a chat completion, in the shapes that the API is known to give."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.venice_server.control import FaultControl
from tools.venice_server.schema import ChatRequest
from tools.venice_server.text_model import Drawn, TextModel


@dataclass(frozen=True)
class VeniceAnswer:
    choice: dict[str, Any]
    num_tokens: int


class AnswerMaker:
    """Draws texts and writes their tokens."""

    def __init__(self, model: TextModel, control: FaultControl) -> None:
        self._model = model
        self._control = control
        self._special = set(model.tokenizer.all_special_ids)
        self._alphabet = {c: byte for byte, c in enumerate(_byte_characters())}

    def choice(self, chat: ChatRequest, prompt_ids: Sequence[int], index: int, most: int) -> VeniceAnswer:
        """Choice ``index`` with at most ``most`` tokens."""
        drawing = self._model.draw(
            prompt_ids,
            temperature=chat.temperature,
            top_p=chat.top_p,
            seed=None if chat.seed is None else chat.seed + 1_000_003 * index,
            top_k=chat.top_logprobs or 0,
        )
        drawn: list[Drawn] = []
        data, text, reason = b"", "", "length"
        for token in drawing:
            drawn.append(token)
            if token.token_id in self._model.eos_ids:
                reason = "stop"
                break
            if token.token_id not in self._special:
                data += self._bytes(token.token_id)
            # An incomplete character at the end is not given out.
            text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
            found = [at for at in (text.find(stop) for stop in chat.stops) if at >= 0]
            if found:
                text, reason = text[: min(found)], "stop"
                break
            if len(drawn) == most:
                break
        shown = drawn[:-1] if drawn[-1].token_id in self._model.eos_ids and not self._control.lists_end else drawn
        choice = {
            "index": index,
            "finish_reason": reason,
            "stop_reason": reason,
            "message": {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None},
            "logprobs": self._logprobs(shown) if chat.logprobs else None,
        }
        return VeniceAnswer(choice, len(drawn))

    def _logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        shape = self._control.shape
        if shape == "none":
            return None
        if shape == "flat":
            return self._described(drawn[0])
        return {"content": [self._described(token) for token in drawn]}

    def _described(self, token: Drawn) -> dict[str, Any]:
        candidates = [self._written(token_id, logprob) for token_id, logprob in token.top]
        return {**self._written(token.token_id, token.logprob), "top_logprobs": candidates}

    def _written(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = str(self._model.tokenizer.decode([token_id]))
        result: dict[str, Any] = {"token": token, "logprob": logprob}
        if self._control.token_bytes == "exact":
            result["bytes"] = list(self._bytes(token_id))
        elif self._control.token_bytes == "lossy":
            result["bytes"] = list(token.encode())
        return result

    def _bytes(self, token_id: int) -> bytes:
        piece = self._model.tokenizer.convert_ids_to_tokens(token_id)
        # Output layers are wider than vocabularies: ids without a piece have no text.
        if piece is None:
            return b""
        if token_id in self._special:
            return str(piece).encode()
        return bytes(self._alphabet[c] for c in piece)


def _byte_characters() -> list[str]:
    """Byte-level pieces: the character that stands for each byte."""
    characters, extra = [], 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + extra))
            extra += 1
    return characters

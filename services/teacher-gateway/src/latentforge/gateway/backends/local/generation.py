"""Continuing a prompt n times in step, with a KV cache and the teacher's rows for what was drawn."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latentforge.gateway.backends.base import ContinuationRequest, Piece
from latentforge.gateway.backends.continuations import seed_of
from latentforge.gateway.backends.local.topk import rows_of_logits
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows, join_rows
from latentforge.text.text_stream import TextStream
from latentforge.text.tokenizer import TextTokenizer

_TOKENS_PER_PIECE = 16


def memory_of(output: Any) -> tuple[str, Any] | None:
    """What a backbone remembers of the tokens that it has read, by the name that it takes it back under.

    Attention calls it past_key_values, state-space models say cache_params. None for families with neither.
    """
    for name in ("past_key_values", "cache_params"):
        if (memory := getattr(output, name, None)) is not None:
            return name, memory
    return None


def draw(logits_v: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One id from float32 logits [v]: the most probable at temperature 0, else from the nucleus of mass ``top_p``."""
    if temperature == 0:
        return int(logits_v.argmax())
    # The highest is taken off before dividing: at a tiny temperature the quotients would be infinite. Stable, so that
    # equally probable ids have one order on every machine and a seed one meaning.
    probabilities, ids = ((logits_v - logits_v.max()) / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_p < 1:
        # The nucleus (Holtzman et al., arXiv:1904.09751) is the smallest set of the most probable ids whose mass
        # reaches top_p: an id is in it while the mass before it has not. The first always is, however small top_p.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.where(before < top_p, torch.zeros(()))
        probabilities[0] = probabilities[0].clamp(min=torch.finfo(torch.float32).tiny)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


class _Continuation:
    """One of the n: what was drawn, and what of it was not handed out yet."""

    def __init__(self, index: int, stop: Sequence[str], tokenizer: TextTokenizer) -> None:
        self._index = index
        self._stop = stop
        self._stream = TextStream(tokenizer)
        self._held = max((len(s) - 1 for s in stop), default=0)
        self._text = ""
        self._token_ids: list[int] = []
        self._rows: list[SparseRows] = []
        self.done = False

    def add(self, token_id: int, rows: SparseRows | None, *, end: bool, last: bool) -> Piece | None:
        """Takes the next token; ``end``: it ends the text, ``last``: no more tokens were asked for."""
        self._token_ids.append(token_id)
        if rows is not None:
            self._rows.append(rows)
        if not end:
            self._text += self._stream.push(token_id)
        if end or last:
            self._text += self._stream.flush()
        found = [at for at in (self._text.find(s) for s in self._stop) if at >= 0]
        if found:
            self._text = self._text[: min(found)]
        if found or end:
            return self._piece(pb.FINISH_REASON_STOP)
        if last:
            return self._piece(pb.FINISH_REASON_LENGTH)
        return self._piece(pb.FINISH_REASON_UNSPECIFIED) if len(self._token_ids) == _TOKENS_PER_PIECE else None

    def _piece(self, reason: pb.FinishReason.ValueType) -> Piece:
        self.done = reason != pb.FINISH_REASON_UNSPECIFIED
        safe = len(self._text) if self.done else max(0, len(self._text) - self._held)
        rows = join_rows(self._rows) if self._rows else None
        piece = Piece(self._index, self._token_ids, self._text[:safe], rows, reason)
        self._text, self._token_ids, self._rows = self._text[safe:], [], []
        return piece


class Continuations:
    """All continuations of one request. The prompt is read once; finished ones leave the batch.

    Args:
        model: a causal LM of transformers.
        logits: last hidden states [n, h] to float32 logits [n, v].
        eos_ids: ids that end a text.
    """

    def __init__(
        self,
        model: Any,
        logits: Callable[[Tensor], Tensor],
        tokenizer: TextTokenizer,
        eos_ids: frozenset[int],
        request: ContinuationRequest,
    ) -> None:
        self._model = model
        self._logits = logits
        self._request = request
        seed = secrets.randbits(63) if request.seed is None else request.seed
        # On the CPU, so that a seed means the same on every device.
        self._generators = [torch.Generator().manual_seed(seed_of(seed, i)) for i in range(request.n)]
        stop, stop_ids = tokenizer.stops(request.stop)
        self._end_ids = eos_ids | request.end_ids | stop_ids
        self._continuations = [_Continuation(i, stop, tokenizer) for i in range(request.n)]
        self._running = list(range(request.n))
        self._position = len(request.prompt_ids)

        prompt = torch.tensor(request.prompt_ids.astype("int64"), device=model.device)[None]
        output = model.base_model(prompt, use_cache=True)
        memory = memory_of(output)
        assert memory is not None, "description.can_generate says whether there is one"
        self._memory_name, self._memory = memory
        if request.n > 1:
            self._keep(torch.zeros(request.n, dtype=torch.int64))
        self._logits_nv = logits(output.last_hidden_state[:, -1]).expand(request.n, -1)

    @property
    def finished(self) -> bool:
        return not self._running

    def step(self) -> list[Piece]:
        """Draws one token for each running continuation; returns what is ready to be sent."""
        request = self._request
        logits_nv = self._logits_nv.cpu()
        drawn = [
            draw(logits_nv[row], request.temperature, request.top_p, self._generators[index])
            for row, index in enumerate(self._running)
        ]
        drawn_n = torch.tensor(drawn)
        rows: Sequence[SparseRows | None] = [None] * len(drawn)
        if request.top_k:
            rows = rows_of_logits(logits_nv, drawn_n, request.top_k, self._position)
        self._position += 1
        last = self._position - len(request.prompt_ids) == request.max_tokens
        pieces = [
            self._continuations[index].add(token_id, row, end=token_id in self._end_ids, last=last)
            for index, token_id, row in zip(self._running, drawn, rows, strict=True)
        ]
        self._advance(drawn_n)
        return [piece for piece in pieces if piece is not None]

    def _advance(self, drawn_n: Tensor) -> None:
        going = [row for row, index in enumerate(self._running) if not self._continuations[index].done]
        if len(going) < len(self._running):
            self._running = [self._running[row] for row in going]
            if not going:
                return
            kept = torch.tensor(going)
            self._keep(kept)
            drawn_n = drawn_n[kept]
        tokens_n1 = drawn_n[:, None].to(self._model.device)
        output = self._model.base_model(tokens_n1, use_cache=True, **{self._memory_name: self._memory})
        self._logits_nv = self._logits(output.last_hidden_state[:, -1])

    def _keep(self, rows_n: Tensor) -> None:
        """Makes the memory that of these rows of the batch, one of which may come more than once."""
        # What beam search does with it; the other operations on batches are missing where states are recurrent.
        self._memory.reorder_cache(rows_n.to(self._model.device))

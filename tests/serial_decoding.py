"""A slow reference for batched decodings: one text after another, with nothing kept."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentforge.model.chunks import left_pad_count
from latentforge.model.decoding.batch import (
    BatchDecoding,
    Draft,
    DraftRequest,
    OpenText,
    TextLogprobs,
    TokenLogprob,
    WrittenChunk,
)
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams


@dataclass(eq=False)
class SerialText(OpenText):
    """A text of :class:`SerialDecoding`: all its ids, first pads among them, and its own randomness."""

    token_ids: list[int]
    params: SamplingParams
    rng: torch.Generator
    logprobs: int | None


class SerialDecoding(BatchDecoding):
    """Decodes one text after another, by the model's teacher-forced pass over the whole text for every token.

    It has no cache and no memory of its own, so that nothing of one text can reach another.

    Attributes:
        calls: what it was asked, in order: ("prefill", tokens read) and ("step", texts).
        fail_on: raised by the next call of that name.
    """

    def __init__(self, model: LatentModel, num_slots: int = 4) -> None:
        self.model = model
        self.num_slots = num_slots
        self.max_tokens, self.chunk_size = model.max_tokens, model.chunk_size
        self.vocab_size, self.eos_id = model.vocab_size, model.eos_id
        self.open_texts: list[SerialText] = []
        self.calls: list[tuple[str, int]] = []
        self.fail_on: dict[str, Exception] = {}

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self.open_texts)

    def open(self, prompt_ids: Sequence[int], params: SamplingParams, logprobs: int | None = None) -> OpenText:
        for token_id in prompt_ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"prompt id {token_id} is not in the vocabulary of {self.vocab_size} ids")
        room = self.max_tokens - len(prompt_ids) - left_pad_count(len(prompt_ids), self.chunk_size)
        if room < self.chunk_size:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens leaves no room for a step")
        if not self.num_free:
            raise RuntimeError("no slot is free")
        padded = [self.model.student.config.pad_id] * left_pad_count(len(prompt_ids), self.chunk_size) + [*prompt_ids]
        text = SerialText(
            len(prompt_ids), room, padded, params, torch.Generator().manual_seed(params.seed or 0), logprobs
        )
        self.open_texts.append(text)
        return text

    def prefill(self, texts: Sequence[OpenText], max_tokens: int) -> int:
        self._called("prefill", max_tokens)
        left = max(max_tokens, self.chunk_size)
        for text in texts:
            num = min(left, text.num_unread)
            text.num_unread -= num
            left -= num
        return max(max_tokens, self.chunk_size) - left

    def step(self, texts: Sequence[OpenText], forced: Sequence[Sequence[int]] | None = None) -> list[WrittenChunk]:
        assert forced is None
        self._called("step", len(texts))
        return [self._write(text) for text in texts if isinstance(text, SerialText)]

    def extend(self, text: OpenText, token_ids: Sequence[int]) -> None:
        assert isinstance(text, SerialText)
        text.token_ids += token_ids
        text.num_unread += len(token_ids)
        text.room -= len(token_ids)

    def draft(self, asked: Sequence[DraftRequest]) -> list[Draft]:
        self._called("draft", len(asked))
        return [self._drafted(request) for request in asked]

    def close(self, text: OpenText) -> None:
        assert isinstance(text, SerialText)
        self.open_texts.remove(text)

    def score(self, token_ids: Sequence[int], likeliest: int = 0) -> Generator[None, None, TextLogprobs]:
        logprobs: list[float] = []
        best: list[list[TokenLogprob]] = []
        for at, token_id in enumerate(token_ids):
            if at and at % self.chunk_size == 0:
                self._called("score", at)
                yield
            row = self._next_logits(list(token_ids[:at])).log_softmax(-1)
            logprobs.append(float(row[token_id]))
            best.append(_likeliest(row, likeliest))
        return TextLogprobs(logprobs, best)

    def _write(self, text: SerialText) -> WrittenChunk:
        assert text in self.open_texts
        assert not text.num_unread
        first = len(text.token_ids)
        logprobs: list[float] = []
        best: list[list[TokenLogprob]] = []
        finite = True
        for _ in range(self.chunk_size):
            logits = self._next_logits(text.token_ids)
            finite &= bool(logits.nan_to_num(0, posinf=torch.nan).isfinite().all() and not logits.isnan().any())
            token_id = _draw(logits.nan_to_num(0), text)
            row = logits.log_softmax(-1)
            logprobs.append(float(row[token_id]))
            best.append(_likeliest(row, text.logprobs or 0))
            text.token_ids.append(token_id)
        written = text.token_ids[first:]
        if text.logprobs is None:
            return WrittenChunk(written, finite=finite)
        return WrittenChunk(written, logprobs, best, finite)

    def _drafted(self, request: DraftRequest) -> Draft:
        assert isinstance(request.text, SerialText)
        assert request.text in self.open_texts
        assert not request.text.num_unread
        known, product, draft = [*request.text.token_ids, *request.begun], 1.0, Draft([], [])
        for _ in range(min(request.most, request.text.room - len(request.begun))):
            probability, token_id = (float(best) for best in self._next_logits(known).softmax(-1).max(-1))
            product *= probability
            if product < request.least:
                break
            known.append(int(token_id))
            draft.token_ids.append(int(token_id))
            draft.probabilities.append(probability)
        return draft

    @torch.inference_mode()
    def _next_logits(self, token_ids: list[int]) -> Tensor:
        """Logits [V] of the token behind these."""
        k = self.chunk_size
        at = len(token_ids) % k
        # Any ids fill the chunk up: a token is predicted from what is before it.
        filled = torch.tensor([*token_ids, *[self.eos_id] * (k - at)], dtype=torch.int64)
        row: Tensor = self.model.logits(filled.view(1, -1, k)).logits[0, -1, at]
        row[self.model.student.config.pad_id] = float("-inf")
        return row

    def _called(self, name: str, number: int) -> None:
        self.calls.append((name, number))
        if name in self.fail_on:
            raise self.fail_on.pop(name)


def _draw(logits: Tensor, text: SerialText) -> int:
    """By inversion, without truncation: what the engine is tried with needs no more."""
    if text.params.temperature == 0:
        return int(logits.argmax())
    mass = (logits / text.params.temperature).double().softmax(-1).cumsum(-1)
    return int(torch.searchsorted(mass, torch.rand(1, dtype=torch.float64, generator=text.rng)))


def _likeliest(row: Tensor, num: int) -> list[TokenLogprob]:
    values, ids = row.topk(num)
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def written_alone(request: GenerationRequest) -> tuple[list[int], str]:
    """What a request's text is when its decoding writes nothing else, and why it ends; ``stop`` is not asked."""
    decoding = request.decoding
    assert isinstance(decoding, SerialDecoding)
    own = SerialDecoding(decoding.model)
    text = own.open(request.prompt_ids, request.params)
    own.prefill([text], len(request.prompt_ids))
    ids: list[int] = []
    while len(ids) < min(request.max_tokens, text.room):
        ids += own.step([text])[0].token_ids
    ids = ids[: min(request.max_tokens, text.room)]
    ends = [at for at, token_id in enumerate(ids) if token_id in request.end_ids]
    return (ids[: ends[0]], "stop") if ends else (ids, "length")

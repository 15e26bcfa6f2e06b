"""Decoding in slots: texts open, are read in pieces, and step together."""

from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.chunks import check_ids, left_pad_count
from latentforge.model.decoding.backbone import PromptPiece
from latentforge.model.decoding.batch import (
    BatchDecoding,
    Draft,
    DraftRequest,
    OpenText,
    TextLogprobs,
    WrittenChunk,
)
from latentforge.model.decoding.drafts import GreedyDraft
from latentforge.model.decoding.logprobs import StepLogprobs
from latentforge.model.decoding.parts import decoding_parts
from latentforge.model.decoding.scoring import score_pieces
from latentforge.model.decoding.texts import SlotText, StepSlots
from latentforge.model.latent_model import LatentModel
from latentforge.model.layers import TABLE_SCALE
from latentforge.model.sampling import BatchSampler, SamplingParams, TextSampling
from latentforge.model.token_level import TokenLevelModel

# Chunks that are read at once, of one prompt: a piece begins at a multiple of it.
PIECE_CHUNKS = 64


class SlotDecoding(BatchDecoding):
    """Of any model, made of its parts.

    Slots 0 … n - 1 are those of the n open texts, so that a step computes views of memory: closing a text takes the
    last slot's text into its slot. Texts that are open and do not step are computed as well where they lie between
    those that do, and nothing of that is kept.
    """

    def __init__(
        self,
        model: LatentModel | TokenLevelModel,
        num_slots: int,
        max_tokens: int,
        *,
        exact: bool = False,
        by_column: bool = False,
    ) -> None:
        """As :func:`latentforge.model.decoding.build.batch_decoding`, which checks.

        Args:
            model: in evaluation mode.
            num_slots: at least 1.
            max_tokens: a multiple of K, up to the model's.
            exact: computes every text by itself.
            by_column: how fused weights are stored, see :func:`fused_weight`.
        """
        self.num_slots, self.max_tokens, self.chunk_size = num_slots, max_tokens, model.chunk_size
        self.vocab_size, self.eos_id = model.vocab_size, model.eos_id
        self._model, self._exact, self._device = model, exact, model.device
        parts = decoding_parts(model, num_slots, max_tokens, by_column=by_column)
        self._backbone, self._states = parts.backbone, parts.states
        self._induction, self._writer = parts.induction, parts.writer
        # All that is kept of texts.
        self._memories = [part for part in (self._backbone, self._states, self._induction) if part is not None]
        self._pad_id, self._context = parts.pad_id, parts.context
        self._texts: list[SlotText] = []
        self._sampler: BatchSampler | None = None
        # Last tokens of a text that a step reads.
        self._recent = max(self.chunk_size, self._writer.window, self._context)

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._texts)

    @property
    def cache_bytes(self) -> int:
        """All that is kept of texts: keys and values, the induction heads' too, a recurrent decoder's states."""
        return sum(memory.num_bytes for memory in self._memories)

    @torch.inference_mode()
    def open(self, prompt_ids: Sequence[int], params: SamplingParams, logprobs: int | None = None) -> OpenText:
        pads = left_pad_count(len(prompt_ids), self.chunk_size)
        room = self.max_tokens - len(prompt_ids) - pads
        if room < self.chunk_size:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens, but at most {self.max_tokens - self.chunk_size} leave room "
                "for a step; shorten it"
            )
        check_ids(prompt_ids, self.vocab_size, "prompt")
        if not self.num_free:
            raise RuntimeError(f"all {self.num_slots} slots are taken; close a text first")
        sampling = TextSampling(params, prompt_ids, self.vocab_size, self._device)
        slot = len(self._texts)
        for memory in self._memories:
            memory.clear(slot)
        ids = [self._pad_id] * pads + list(prompt_ids)
        text = SlotText(len(ids), room, slot, ids, logprobs, sampling)
        self._texts.append(text)
        return text

    @torch.inference_mode()
    def prefill(self, texts: Sequence[OpenText], max_tokens: int) -> int:
        read = 0
        pieces: list[tuple[SlotText, int]] = []
        size = PIECE_CHUNKS * self.chunk_size
        planned = {text: text.num_read for text in map(self._own, texts)}
        # Every text's next piece in turn: short prompts need not wait until a long one is through.
        for text in planned:
            length = min(size, len(text.ids) - text.num_read)
            if length and (not pieces or read + length <= max_tokens):
                pieces.append((text, length))
                read += length
        for some in [[piece] for piece in pieces] if self._exact else [pieces] if pieces else []:
            self._read(some)
        return read

    @torch.inference_mode()
    def step(self, texts: Sequence[OpenText], forced: Sequence[Sequence[int]] | None = None) -> list[WrittenChunk]:
        given = dict(zip(map(self._own, texts), forced or [()] * len(texts), strict=True))
        stepping = sorted(given, key=lambda text: text.slot)
        for text in stepping:
            if text.num_unread:
                raise ValueError(f"{text.num_unread} tokens of a text's prompt are to be read before it can step")
            if text.room < self.chunk_size:
                raise ValueError("a text without room for a step cannot step")
        written: dict[SlotText, WrittenChunk] = {}
        for some in ([text] for text in stepping) if self._exact else [stepping]:
            written.update(zip(some, self._write(some, [given[text] for text in some]), strict=True))
        return [written[self._own(text)] for text in texts]

    @torch.inference_mode()
    def extend(self, text: OpenText, token_ids: Sequence[int]) -> None:
        own, k = self._own(text), self.chunk_size
        if len(token_ids) % k:
            raise ValueError(f"{len(token_ids)} ids are no whole chunks of {k}")
        if len(token_ids) > own.room:
            raise ValueError(f"{len(token_ids)} ids are more than the {own.room} that the text has room for")
        check_ids(token_ids, self.vocab_size, "text")
        own.ids += token_ids
        own.room -= len(token_ids)
        own.num_unread += len(token_ids)

    @torch.inference_mode()
    def draft(self, asked: Sequence[DraftRequest]) -> list[Draft]:
        for request in asked:
            if self._own(request.text).num_unread:
                raise ValueError(f"{request.text.num_unread} tokens of a text are to be read before it can be drafted")
            check_ids(request.begun, self.vocab_size, "text")
        drafting = [GreedyDraft(self._own(request.text), request, self.chunk_size) for request in asked]
        drafting.sort(key=lambda draft: draft.text.slot)
        going = [draft for draft in drafting if not draft.is_over]
        for some in [[draft] for draft in going] if self._exact else [going] if going else []:
            self._draft(some)
        drafted = {draft.text: draft.drafted for draft in drafting}
        return [drafted[self._own(request.text)] for request in asked]

    @torch.inference_mode()
    def close(self, text: OpenText) -> None:
        closed, last = self._own(text), self._texts[-1]
        self._texts.pop()
        if last is not closed:
            for memory in self._memories:
                memory.move(last.slot, closed.slot)
            self._texts[closed.slot] = last
            last.slot = closed.slot
        closed.slot = -1

    def score(self, token_ids: Sequence[int], likeliest: int = 0) -> Generator[None, None, TextLogprobs]:
        return score_pieces(self._model, token_ids, likeliest)

    def _own(self, text: OpenText) -> SlotText:
        assert isinstance(text, SlotText)
        if not 0 <= text.slot < len(self._texts) or self._texts[text.slot] is not text:
            raise ValueError("the text is closed, or another decoding's")
        return text

    def _read(self, pieces: Sequence[tuple[SlotText, int]]) -> None:
        """Reads so many tokens, whole chunks, of each of the texts."""
        k, context = self.chunk_size, self._context
        # The backbone's position i reads chunk i - 1; its position 0, the start. Induction heads read tokens behind
        # their context.
        before = max(k, context)
        inputs = []
        for text, length in pieces:
            ids = self._ids_before([text], before + length, text.num_read + length)[0]
            embedded = self._embed(ids)
            chunks = embedded[before - k : -k].unflatten(0, (-1, k))
            borders = None
            if self._states is not None:
                borders = self._states.read(text.slot, embedded[before:])[::k]
            inputs.append(self._writer.inputs(chunks, borders))
            if not text.num_read:
                inputs[-1][0] = self._writer.start
            if self._induction is not None:
                known = embedded[before - context :].clone()
                known[: max(0, context - text.num_read)] = 0
                self._induction.read(text.slot, text.num_read, ids[before:], known)
        self._backbone.read(
            torch.cat(inputs), [PromptPiece(text.slot, text.num_read // k, length // k) for text, length in pieces]
        )
        for text, length in pieces:
            text.num_read += length
            text.num_unread -= length

    def _begin_chunk(self, stepping: Sequence[SlotText]) -> StepSlots:
        """Begins a chunk behind texts that are sorted by slot: the writer has its first token's logits."""
        first, k = stepping[0].slot, self.chunk_size
        texts = self._texts[first : stepping[-1].slot + 1]
        row_ids = [text.slot - first for text in stepping]
        rows = torch.tensor(row_ids, device=self._device)
        lengths = [text.num_read for text in texts]
        embedded = self._embed(self._ids_before(texts, self._recent))
        borders = None
        if self._states is not None:
            self._states.begin(first, len(texts))
            borders = self._states.output
        inputs = self._writer.inputs(embedded[:, self._recent - k :], borders)
        for row, text in enumerate(texts):
            if not text.ids:
                inputs[row] = self._writer.start
        hidden = self._backbone.step(inputs, first, [length // k for length in lengths], rows, row_ids)
        if self._induction is not None:
            self._fill_tail(texts, embedded)
            self._induction.begin(first, lengths)
        self._writer.begin(hidden, embedded[:, self._recent - self._writer.window :], self._noise(texts, stepping))
        return StepSlots(first, lengths, rows, row_ids)

    def _keep_chunk(self, slots: StepSlots, written: Sequence[tuple[SlotText, list[int]]]) -> None:
        """Keeps the chunk that was begun last, and read to its end, of the texts that step."""
        if self._induction is not None:
            self._induction.end(slots.rows, slots.row_ids, slots.lengths)
        if self._states is not None:
            self._states.end(slots.rows)
        for text, ids in written:
            text.ids += ids
            text.num_read += self.chunk_size
            text.room -= self.chunk_size

    def _write(self, stepping: Sequence[SlotText], forced: Sequence[Sequence[int]]) -> list[WrittenChunk]:
        """Writes a chunk behind texts that are sorted by slot; it begins with the ids that are forced."""
        slots = self._begin_chunk(stepping)
        tokens_kn, logprobs, finite = self._draw_chunk(slots, stepping, forced)
        chunks = tokens_kn.T.tolist()
        self._keep_chunk(slots, list(zip(stepping, chunks, strict=True)))
        written = []
        for ids, asked, sound in zip(chunks, logprobs.lists(), finite.tolist(), strict=True):
            values, best = asked or (None, None)
            written.append(WrittenChunk(ids, values, best, sound))
        return written

    def _draft(self, going: list[GreedyDraft]) -> None:
        """Drafts behind texts that are sorted by slot, chunk after chunk, and takes back what was kept of them."""
        texts = [draft.text for draft in going]
        lengths = [text.num_read for text in texts]
        behind = None if self._states is None else [self._states.behind(text.slot) for text in texts]
        try:
            while going:
                slots = self._begin_chunk([draft.text for draft in going])
                if self._draft_chunk(slots, going):
                    return
                self._keep_chunk(slots, [(draft.text, draft.next_chunk()) for draft in going])
                going = [draft for draft in going if not draft.is_over]
        finally:
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                if text.num_read == length:
                    continue
                text.room += text.num_read - length
                text.num_read = length
                del text.ids[length:]
                if self._induction is not None:
                    self._induction.take_back(text.slot, length)
                if self._states is not None and behind is not None:
                    self._states.go_back(text.slot, behind[row])

    def _draft_chunk(self, slots: StepSlots, going: Sequence[GreedyDraft]) -> bool:
        """Drafts the tokens of the chunk that was begun; says whether every draft ended before the chunk did."""
        ids = torch.zeros(len(slots.lengths), dtype=torch.int64, device=self._device)
        for place in range(self.chunk_size):
            # What is known needs no logits, which are most of the work.
            if any(draft.wants(place) for draft in going):
                found = None if self._induction is None else self._induction.find(place)
                logits = self._writer.logits(place, found)
                best = (logits if slots.is_whole else logits[slots.rows]).log_softmax(-1).max(-1)
                for draft, token_id, logprob in zip(going, best.indices.tolist(), best.values.tolist(), strict=True):
                    draft.offer(place, token_id, logprob)
                if all(draft.is_over for draft in going):
                    return True
            ids[slots.rows] = torch.tensor([draft.at(place) for draft in going], device=self._device)
            self._read_token(slots, place, ids)
        return False

    def _draw_chunk(
        self, slots: StepSlots, stepping: Sequence[SlotText], forced: Sequence[Sequence[int]]
    ) -> tuple[Tensor, StepLogprobs, Tensor]:
        """Draws the tokens of the chunk that was begun.

        Returns:
            int64 [K, n]; log probabilities; whether each text's logits are finite, bool [n].
        """
        k, induction, rows = self.chunk_size, self._induction, slots.rows
        num, whole = len(slots.lengths), slots.is_whole
        drawn_kn = torch.empty(k, len(stepping), dtype=torch.int64, device=self._device)
        every_kn = drawn_kn if whole else drawn_kn.new_zeros(k, num)
        forced_kn = self._forced(forced)
        sampler = self._sampler_of(stepping)
        logprobs = StepLogprobs([text.logprobs for text in stepping], self._device)
        for place in range(k):
            found = None if induction is None else induction.find(place)
            logits = self._writer.logits(place, found)
            if not whole:
                logits = logits[rows]
            boosted = None
            if found is not None and sampler.asks_for_boosts:
                boosted = (found.ids, found.boosts) if whole else (found.ids[rows], found.boosts[rows])
            tokens = sampler.draw(logits, None if forced_kn is None else forced_kn[place], boosted)
            logprobs.add(logits, tokens)
            drawn_kn[place] = tokens
            if not whole:
                every_kn[place, rows] = tokens
            self._read_token(slots, place, every_kn[place])
        return drawn_kn, logprobs, sampler.take_finite()

    def _read_token(self, slots: StepSlots, place: int, token_ids: Tensor) -> None:
        """Reads token ``place`` of the chunk that was begun, int64 [n], of all texts in its slots."""
        is_last = place + 1 == self.chunk_size
        if self._induction is not None:
            embedded = self._induction.tail[slots.first :][: len(slots.lengths), self._context + place]
            torch.mul(F.embedding(token_ids, self._writer.table), TABLE_SCALE, out=embedded)
            self._induction.read_token(place, token_ids)
        elif not is_last or self._states is not None:
            embedded = self._embed(token_ids)
        if not is_last:
            self._writer.read(embedded)
        elif self._states is not None:
            # Of the chunk nothing is left to write, but what was read is carried on.
            self._states.read_token(embedded)

    def _sampler_of(self, stepping: Sequence[SlotText]) -> BatchSampler:
        """One is kept for as long as the same texts step."""
        samplings = tuple(text.sampling for text in stepping)
        if self._sampler is None or self._sampler.texts != samplings:
            self._sampler = BatchSampler(samplings)
        return self._sampler

    def _forced(self, forced: Sequence[Sequence[int]]) -> Tensor | None:
        """The ids that are forced, int64 [K, n], -1 where none is; None if there are none at all."""
        if not any(forced):
            return None
        rows = [[*ids, *[-1] * (self.chunk_size - len(ids))] for ids in forced]
        return torch.tensor(rows, device=self._device).T

    def _ids_before(self, texts: Sequence[SlotText], num: int, end: int | None = None) -> Tensor:
        """The last ``num`` ids before token ``end`` of each of n texts, or of what is read of them, int64 [n, num].

        Before their beginning stand pads.
        """
        rows = []
        for text in texts:
            stop = text.num_read if end is None else end
            ids = text.ids[max(0, stop - num) : stop]
            rows.append([self._pad_id] * (num - len(ids)) + ids)
        return torch.tensor(rows, device=self._device)

    def _embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._writer.table) * TABLE_SCALE

    def _fill_tail(self, texts: Sequence[SlotText], embedded: Tensor) -> None:
        """Gives the induction heads the last tokens of n texts, embedded [n, t, e]; before a text stand zeros."""
        assert self._induction is not None
        first = texts[0].slot
        tail = self._induction.tail[first : first + len(texts), : self._context]
        tail.copy_(embedded[:, self._recent - self._context :])
        for row, text in enumerate(texts):
            if text.num_read < self._context:
                tail[row, : self._context - text.num_read] = 0

    def _noise(self, texts: Sequence[SlotText], stepping: Sequence[SlotText]) -> Tensor | None:
        """Uniform noise of n texts, each by its own generator, float [n, noise_size]; zeros for what does not step."""
        size = self._writer.noise_size
        if not size:
            return None
        noise = self._writer.table.new_zeros(len(texts), size)
        for text in stepping:
            torch.rand(size, generator=text.sampling.noise, out=noise[text.slot - texts[0].slot])
        return noise

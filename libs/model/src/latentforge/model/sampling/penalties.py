"""What is added to logits before anything is drawn: biases, and penalties for what a text has already."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.sampling.text import TextSampling, column, same_place

# Written ids that there is room for before the buffer is made anew.
_ROOM = 64
# A logit that a tiny repetition penalty divides stays finite, also over the least temperature.
_GREATEST = 1e30


class Adjustments:
    """Those of a batch.

    What a text has is kept as it came, one id a draw, rather than as counts over the vocabulary: a text has fewer ids.
    Ids are places in the logits of the whole batch, laid out as one row with one place more, which nothing reads and
    which stands wherever a text has fewer ids than others.
    """

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        self._texts = texts
        self._vocab_size, device = same_place(texts)
        params = [text.params for text in texts]
        self._nowhere = len(texts) * self._vocab_size
        self._memory = torch.empty(self._nowhere + 1, device=device)
        biases = [
            (row * self._vocab_size + i, value) for row, p in enumerate(params) for i, value in p.logit_bias.items()
        ]
        self._biased = torch.tensor([place for place, _ in biases], dtype=torch.int64, device=device)
        self._biases = torch.tensor([bias for _, bias in biases], dtype=torch.float32, device=device)
        self._rows = torch.arange(0, self._nowhere, self._vocab_size, device=device)
        self._counts_written = any(p.is_penalised for p in params)
        self._repetition = _if_any([p.repetition_penalty for p in params], 1.0, device)
        self._presence = _if_any([p.presence_penalty for p in params], 0.0, device)
        self._frequency = _if_any([-p.frequency_penalty for p in params], 0.0, device)
        self._make_room()

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [b, V] with all of it, float32 [b, V], until this is called again."""
        flat = self._memory
        adjusted = flat[: self._nowhere].view(logits.shape)
        adjusted.copy_(logits)
        flat[self._nowhere] = 0
        if len(self._biases):
            flat.index_add_(0, self._biased, self._biases)
        if self._repetition is not None:
            places = self._places[: self._end]
            seen = flat.take(places)
            penalised = torch.where(seen > 0, seen / self._repetition, seen * self._repetition)
            flat.put_(places, penalised.clamp_(max=_GREATEST))
        places = self._places[self._first : self._end]
        if self._presence is not None:
            flat.put_(places, flat.take(places) - self._presence)
        if self._frequency is not None:
            flat.put_(places, self._frequency.expand(places.shape), accumulate=True)
        return adjusted

    def note(self, ids: Tensor) -> None:
        """Counts what was drawn, int64 [b]."""
        if not self._counts_written:
            return
        if self._end == len(self._places):
            self._make_room()
        # Of rows without penalties as well: they are divided by 1, and 0 is taken from them.
        torch.add(ids, self._rows, out=self._places[self._end])
        self._end += 1
        for row, text in enumerate(self._texts):
            if text.params.is_penalised:
                text.wrote_one(self._places[:, row], self._end, row * self._vocab_size)

    def _make_room(self) -> None:
        """Lays out what the texts have, int64 [n, b]: prompts from 0 on, and written ids so that all end together."""
        texts = self._texts
        self._first = max(len(text.prompt_ids) for text in texts)
        self._end = self._first + max(text.num_written for text in texts)
        length = self._end + (_ROOM if self._counts_written else 0)
        laid_out = torch.full((length, len(texts)), self._nowhere, device=self._memory.device)
        for row, text in enumerate(texts):
            laid_out[: len(text.prompt_ids), row] = text.prompt_ids + row * self._vocab_size
            laid_out[self._end - text.num_written : self._end, row] = text.written + row * self._vocab_size
        self._places = laid_out


def _if_any(values: Sequence[float], neutral: float, device: torch.device) -> Tensor | None:
    """One value a row; None where none of them changes anything."""
    return None if all(value == neutral for value in values) else column(values, device)[:, 0]

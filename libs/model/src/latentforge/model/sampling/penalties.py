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

    Ids are kept as they came, one column a draw, rather than as counts over the vocabulary: a text has fewer. Rows are
    filled up with the id V, a column beside the logits that nothing reads.
    """

    def __init__(self, texts: Sequence[TextSampling]) -> None:
        self._texts = texts
        self._vocab_size, device = same_place(texts)
        params = [text.params for text in texts]
        self._biases = _stacked([list(p.logit_bias) for p in params], self._vocab_size, device)
        self._bias_values = torch.zeros(self._biases.shape, device=device)
        for row, p in enumerate(params):
            self._bias_values[row, : len(p.logit_bias)] = torch.tensor(list(p.logit_bias.values()))
        self._penalised = torch.tensor([[p.is_penalised] for p in params], device=device)
        self._counts_written = any(p.is_penalised for p in params)
        self._repetition = _if_any([p.repetition_penalty for p in params], 1.0, device)
        self._presence = _if_any([p.presence_penalty for p in params], 0.0, device)
        self._frequency = _if_any([-p.frequency_penalty for p in params], 0.0, device)
        self._make_room()

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [b, V] with all of it, in memory of their own: float32 [b, V]."""
        vocab_size = self._vocab_size
        adjusted = torch.empty(len(logits), vocab_size + 1, device=logits.device)
        adjusted[:, :vocab_size] = logits
        adjusted[:, vocab_size] = 0
        if self._biases.shape[1]:
            adjusted.scatter_add_(1, self._biases, self._bias_values)
        if self._repetition is not None:
            ids = self._ids[:, : self._end]
            seen = adjusted.gather(1, ids)
            penalised = torch.where(seen > 0, seen / self._repetition, seen * self._repetition)
            adjusted.scatter_(1, ids, penalised.clamp_(max=_GREATEST))
        ids = self._ids[:, self._first : self._end]
        if self._presence is not None:
            adjusted.scatter_(1, ids, adjusted.gather(1, ids) - self._presence)
        if self._frequency is not None:
            adjusted.scatter_add_(1, ids, self._frequency.expand(ids.shape))
        return adjusted[:, :vocab_size]

    def note(self, ids: Tensor) -> None:
        """Counts what was drawn, int64 [b]."""
        if not self._counts_written:
            return
        if self._end == self._ids.shape[1]:
            self._make_room()
        self._ids[:, self._end] = ids.where(self._penalised[:, 0], self._vocab_size)
        self._end += 1
        for row, text in enumerate(self._texts):
            if text.params.is_penalised:
                text.written = self._ids[row, self._end - len(text.written) - 1 : self._end]

    def _make_room(self) -> None:
        """Lays out what the texts have: prompts from column 0 on, written ids so that all rows end in one column."""
        texts, vocab_size = self._texts, self._vocab_size
        self._first = max(len(text.prompt_ids) for text in texts)
        self._end = self._first + max(len(text.written) for text in texts)
        width = self._end + (_ROOM if self._counts_written else 0)
        self._ids = torch.full((len(texts), width), vocab_size, device=texts[0].device)
        for row, text in enumerate(texts):
            self._ids[row, : len(text.prompt_ids)] = text.prompt_ids
            self._ids[row, self._end - len(text.written) : self._end] = text.written


def _stacked(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row] + [filler] * (width - len(row)) for row in rows], dtype=torch.int64, device=device)


def _if_any(values: Sequence[float], neutral: float, device: torch.device) -> Tensor | None:
    """One value a row; None where none of them changes anything."""
    return None if all(value == neutral for value in values) else column(values, device)

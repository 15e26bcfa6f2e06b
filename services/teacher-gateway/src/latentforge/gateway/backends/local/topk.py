"""Sparse rows from logits, exactly, and never with all positions' logits in memory."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.gateway.backends.base import BackendError, CandidateIds, CandidateRows
from latentforge.teacher_client.sparse_rows import SparseRows

# Logits of one chunk of positions. On a CPU it should stay in the cache for the passes over it; a GPU wants work.
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


class _Block:
    """Columns of rows for consecutive positions, as the attributes of SparseRows name them, and candidates' [n, m]."""

    def __init__(self, num_rows: int, top_k: int, num_candidates: int = 0) -> None:
        self.ids = np.empty((num_rows, top_k), np.uint32)
        self.logprobs = np.empty((num_rows, top_k), np.float32)
        self.counts = np.empty(num_rows, np.uint16)
        self.realised_logprobs = np.empty(num_rows, np.float32)
        self.realised_ranks = np.empty(num_rows, np.uint32)
        self.tail_mass = np.empty(num_rows, np.float32)
        self.candidate_logprobs = np.empty((num_rows, num_candidates), np.float32)

    def fill(self, start: int, logits_nv: Tensor, realised_n: Tensor, candidates_nm: Tensor | None = None) -> None:
        """Rows ``start`` … for float32 logits, which are overwritten."""
        top_k = self.ids.shape[1]
        top = logits_nv.topk(top_k, dim=-1)
        realised_n1 = logits_nv.gather(1, realised_n[:, None])
        # Whatever exceeds the realised token is in the top k if the token itself is; the others need a whole pass.
        ranks_n = 1 + (top.values > realised_n1).sum(-1)
        outside = (realised_n1[:, 0] < top.values[:, -1]).nonzero()[:, 0]
        if len(outside):
            ranks_n[outside] = 1 + (logits_nv[outside] > realised_n1[outside]).sum(-1)
        asked_nm = None if candidates_nm is None else logits_nv.gather(1, candidates_nm)
        # log softmax(x)_i = x_i − m − log Σ_j exp(x_j − m) with m = max x, so that no exponential overflows. Only the
        # normaliser needs the whole vocabulary, so only it is computed of it, in place.
        highest_n1 = top.values[:, :1].clone()
        total_n1 = logits_nv.sub_(highest_n1).exp_().sum(-1, keepdim=True)
        if not bool(torch.isfinite(total_n1).all()):
            raise BackendError("the teacher's logits are not finite; its weights or TEACHER_DTYPE are wrong")
        normaliser_n1 = highest_n1 + total_n1.log()
        logprobs_nk = top.values - normaliser_n1

        rows = slice(start, start + len(realised_n))
        self.ids[rows] = top.indices.cpu().numpy()
        self.logprobs[rows] = logprobs_nk.cpu().numpy()
        self.counts[rows] = torch.isfinite(logprobs_nk).sum(-1).cpu().numpy()
        self.realised_logprobs[rows] = (realised_n1 - normaliser_n1)[:, 0].cpu().numpy()
        self.realised_ranks[rows] = ranks_n.cpu().numpy()
        if asked_nm is not None:
            self.candidate_logprobs[rows] = (asked_nm - normaliser_n1).cpu().numpy()
        self.tail_mass[rows] = (1 - logprobs_nk.exp().sum(-1)).clamp(min=0).cpu().numpy()

    def rows(self, start: int, stop: int, first_position: int) -> SparseRows:
        part = slice(start, stop)
        return SparseRows(
            first_position=first_position,
            ids=self.ids[part],
            logprobs=self.logprobs[part],
            counts=self.counts[part],
            realised_logprobs=self.realised_logprobs[part],
            realised_ranks=self.realised_ranks[part],
            tail_mass=self.tail_mass[part],
        )


def rows_of_hidden(
    hidden_nh: Tensor,
    realised_n: Tensor,
    lengths: Sequence[int],
    top_k: int,
    output_layer: Callable[[Tensor], Tensor],
    vocab_size: int,
    candidates: Sequence[CandidateIds | None] = (),
) -> list[CandidateRows]:
    """Rows of several sequences whose positions lie one after another.

    Args:
        hidden_nh: the backbone's last hidden states, [n, h], at the positions before the realised tokens.
        realised_n: int64 [n], the token that follows each hidden state.
        lengths: rows of each sequence; they sum to n.
        top_k: entries per row.
        output_layer: hidden states [c, h] to float32 logits [c, vocab_size] that may be overwritten.
        vocab_size: width of the logits.
        candidates: of each sequence, uint32 [its rows, m]; empty where none has any.

    Returns:
        For each sequence its rows, the first of them for position 1.
    """
    asked = _padded(candidates, lengths)
    block = _Block(len(realised_n), top_k, 0 if asked is None else asked.shape[1])
    chunk = max(1, _CHUNK_BYTES.get(hidden_nh.device.type, 64 << 20) // (4 * vocab_size))
    for start in range(0, len(realised_n), chunk):
        part = slice(start, start + chunk)
        asked_nm = None if asked is None else torch.from_numpy(asked[part]).to(hidden_nh.device)
        block.fill(start, output_layer(hidden_nh[part]), realised_n[part], asked_nm)
    answers: list[CandidateRows] = []
    for at, (end, length) in enumerate(zip(np.cumsum(lengths).tolist(), lengths, strict=True)):
        own = candidates[at] if candidates else None
        logprobs = None if own is None else block.candidate_logprobs[end - length : end, : own.shape[1]]
        answers.append(CandidateRows(block.rows(end - length, end, 1), logprobs))
    return answers


def _padded(candidates: Sequence[CandidateIds | None], lengths: Sequence[int]) -> NDArray[np.int64] | None:
    """Candidates of all rows, int64 [n, m], where those who ask for fewer have zeros; None where nobody asks."""
    most = max((own.shape[1] for own in candidates if own is not None), default=0)
    if not most:
        return None
    padded = np.zeros((sum(lengths), most), np.int64)
    end = 0
    for own, length in zip(candidates, lengths, strict=True):
        if own is not None:
            padded[end : end + length, : own.shape[1]] = own
        end += length
    return padded


def rows_of_logits(logits_nv: Tensor, realised_n: Tensor, top_k: int, first_position: int) -> list[SparseRows]:
    """One row for each of n sequences that grow in step: float32 logits [n, v], realised ids int64 [n]."""
    block = _Block(len(realised_n), top_k)
    block.fill(0, logits_nv.clone(), realised_n)
    return [block.rows(i, i + 1, first_position) for i in range(len(realised_n))]

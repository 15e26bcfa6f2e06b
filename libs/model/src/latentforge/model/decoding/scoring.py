"""Teacher-forced log probabilities of a text, by bounded pieces of work."""

from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.chunks import check_ids, left_pad_count
from latentforge.model.decoding.backbone import PromptPiece
from latentforge.model.decoding.batch import TextLogprobs, TokenLogprob
from latentforge.model.decoding.parts import DecodingParts, decoding_parts
from latentforge.model.latent_model import LatentModel
from latentforge.model.layers import TABLE_SCALE
from latentforge.model.sampling import logprobs_of
from latentforge.model.token_level import TokenLevelModel

# At most so many chunks by the backbone at once, and tokens and logits by the output layer.
_CHUNKS_AT_ONCE = 64
_TOKENS_AT_ONCE = 256
_LOGITS_AT_ONCE = 2**23
# Of an energy head's noise: a text's numbers are the same whenever they are asked for.
_NOISE_SEED = 0


@torch.inference_mode()
def score_pieces(
    model: LatentModel | TokenLevelModel, token_ids: Sequence[int], likeliest: int = 0
) -> Generator[None, None, TextLogprobs]:
    """Log probabilities of every token of a text behind those before it, the first's at the beginning of a text.

    Exact; with an energy head those under the latents of one fixed noise. A text whose length is no multiple of K has
    pads before it, as in training. Memory is taken for this text and given back at the end. Where the decoder is split
    the transformer reads the whole text in the first piece of work.

    Args:
        model: in evaluation mode.
        token_ids: at least one.
        likeliest: for each token so many of the likeliest ids as well.

    Raises:
        ValueError: there is no token, one is not in the vocabulary, or the text is longer than the context.
    """
    _check(model, token_ids)
    pads = left_pad_count(len(token_ids), model.chunk_size)
    parts = decoding_parts(model, 1, pads + len(token_ids))
    ids = torch.tensor([parts.pad_id] * pads + list(token_ids), device=model.device)
    noise = torch.Generator(model.device).manual_seed(_NOISE_SEED)
    k, num_chunks = parts.chunk_size, len(ids) // parts.chunk_size
    at_once = max(1, min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // model.vocab_size) // k)
    split = _split_states(model, ids)
    logprobs: list[float] = []
    best: list[list[TokenLogprob]] = []
    for begin in range(0, num_chunks, _CHUNKS_AT_ONCE):
        end = min(begin + _CHUNKS_AT_ONCE, num_chunks)
        hidden, states = _read(parts, ids, begin, end) if split is None else (split[begin:end, 0], split[begin:end])
        _read_by_induction(parts, ids, begin, end)
        yield
        for first in range(0, len(hidden), at_once):
            some = slice(first, first + at_once)
            known = None if states is None else states[some]
            logits = _logits(parts, ids, begin + first, hidden[some], known, noise)
            targets = ids[(begin + first) * k :][: len(logits)]
            own, at, values = logprobs_of(logits, targets, likeliest)
            logprobs += own.tolist()
            best += [list(zip(i, v, strict=True)) for i, v in zip(at.tolist(), values.tolist(), strict=True)]
            yield
    return TextLogprobs(logprobs[pads:], best[pads:])


def _check(model: LatentModel | TokenLevelModel, token_ids: Sequence[int]) -> None:
    if not token_ids:
        raise ValueError("there is no token to score; give at least one")
    if len(token_ids) > model.max_tokens:
        raise ValueError(
            f"the text has {len(token_ids)} tokens, but this model reads at most {model.max_tokens}; shorten it"
        )
    check_ids(token_ids, model.vocab_size, "text")


def _embedded(parts: DecodingParts, ids: Tensor, first: int, end: int) -> Tensor:
    """Embedded tokens ``first`` … ``end - 1``, float [end - first, e]; before the text's first one stand pads."""
    known = F.pad(ids[max(0, first) : end], (max(0, -first), 0), value=parts.pad_id)
    return F.embedding(known, parts.writer.table) * TABLE_SCALE


def _split_states(model: LatentModel | TokenLevelModel, ids: Tensor) -> Tensor | None:
    """A split decoder's states of the whole text, float [t, K, h]; None of others.

    Its last layers' keys and values of a chunk are others for the chunk itself than for those behind it, so that the
    text is not read in pieces.
    """
    if isinstance(model, TokenLevelModel) or not isinstance(model.student.chunk_decoder, SplitDecoder):
        return None
    states = model.student.text_states(ids.view(1, -1, model.chunk_size))
    assert states is not None
    return states[0]


def _read(parts: DecodingParts, ids: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor | None]:
    """Reads chunks ``begin`` … ``end - 1``.

    Returns:
        The backbone's states that predict them, float [end - begin, h]; a recurrent decoder's states before each of
        their tokens, float [end - begin, K, width], None of others.
    """
    k = parts.chunk_size
    states = borders = None
    if parts.states is not None:
        states = parts.states.read(0, _embedded(parts, ids, begin * k, end * k)).unflatten(0, (-1, k))
        borders = states[:, 0]
    # Shifted by one chunk: position t reads chunk t - 1.
    chunks = _embedded(parts, ids, (begin - 1) * k, (end - 1) * k).unflatten(0, (-1, k))
    inputs = parts.writer.inputs(chunks, borders)
    if begin == 0:
        inputs[0] = parts.writer.start
    hidden = parts.backbone.read(inputs, [PromptPiece(0, begin, end - begin)], want_hidden=True)
    assert hidden is not None
    return hidden, states


def _read_by_induction(parts: DecodingParts, ids: Tensor, begin: int, end: int) -> None:
    """Lets the induction heads, if there are any, read chunks ``begin`` … ``end - 1``."""
    if parts.induction is not None:
        k, context = parts.chunk_size, parts.context
        known = _embedded(parts, ids, begin * k - context, end * k)
        known[: max(0, context - begin * k)] = 0
        parts.induction.read(0, begin * k, ids[begin * k : end * k], known)


def _logits(
    parts: DecodingParts, ids: Tensor, begin: int, hidden: Tensor, states: Tensor | None, noise: torch.Generator
) -> Tensor:
    """Logits of the tokens of n chunks from chunk ``begin`` on, float [n·K, V].

    Args:
        parts: of the model.
        ids: of the whole text.
        begin: the first of the chunks.
        hidden: float [n, h].
        states: a recurrent decoder's, float [n, K, width]; None of others.
        noise: draws an energy head's.
    """
    k, writer = parts.chunk_size, parts.writer
    end = begin + len(hidden)
    read = _windows(parts, ids, begin, end) if states is None else (states,)
    numbers = None
    if writer.noise_size:
        shape = len(hidden), writer.noise_size
        numbers = torch.rand(shape, generator=noise, device=hidden.device, dtype=hidden.dtype)
    found = None if parts.induction is None else parts.induction.find_all(0, begin * k, end * k)
    return writer.teacher_forced(hidden, read, numbers, found)


def _windows(parts: DecodingParts, ids: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The window's tokens before each chunk and its own, embedded [n, window, e] and [n, K, e]."""
    k, window = parts.chunk_size, parts.writer.window
    embedded = _embedded(parts, ids, begin * k - window, end * k)
    # Row t: the window's tokens before chunk t.
    previous = embedded.new_empty(end - begin, 0, embedded.shape[1])
    if window:
        previous = embedded[:-k].unfold(0, window, k).transpose(1, 2)
    return previous, embedded[window:].unflatten(0, (-1, k))

"""Free generations, judged by the teacher and by how varied they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.batch_generation import generate_batch
from latentforge.model.latent_model import LatentModel
from latentforge.model.metrics.text_stats import num_repeated, text_stats
from latentforge.model.sampling import SamplingParams
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.estimate import Estimate, ratio_of_sums
from latentforge.trainer.evaluate.likelihood import Model

TEMPERATURES = (1.0, 0.7, 0.0)
_LOGITS_AT_ONCE = 2**26

Score = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], list[NDArray[np.float32]]]
"""Given the ids of prompts and of the text behind each, the teacher's log probabilities of the text's tokens given the
prompt: float32 [tokens] each, the teacher's own tokens where its vocabulary is another one."""


@dataclass(frozen=True)
class Text:
    """One continuation: its ids without the end-of-text id, and whether that followed."""

    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class TextScore:
    """Figures of all continuations of one setting.

    Attributes:
        teacher_nats: the teacher's nats per token that it scores, given the prompt, ends of text included; None without
            a teacher.
        distinct_3, repetition: see ``metrics.text_stats``; None where every text is too short.
        repetition_interval: low and high; None of fewer than two texts that have a token.
        mean_length: tokens.
    """

    teacher_nats: Estimate | None
    distinct_3: float | None
    repetition: float | None
    mean_length: float
    repetition_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class PromptSet:
    """Beginnings of held-out texts: ``prompts`` int64 [n, L], and how the texts go on, ``references`` [n, tokens]."""

    prompts: Tensor
    references: Tensor


def choose_prompts(data: PackedData, num: int, prompt_tokens: int, new_tokens: int) -> PromptSet:
    """Up to ``num`` prompts, evenly spread over the documents that are long enough, then over sequences.

    Sequences are only taken where there are too few such documents, and where no text ends in their beginnings. Where
    the data's sequences begin with bos, so do the prompts.

    Raises:
        TrainerError: there are not two.
    """
    length = prompt_tokens + new_tokens
    bos = [] if data.meta.bos_id is None else [data.meta.bos_id]
    beginnings = ([*bos, *ids] if ids[:1] != bos else ids for ids in data.document_beginnings(length))
    documents = [ids[:length] for ids in beginnings if len(ids) >= length]
    chosen = [documents[i] for i in _spread(len(documents), num)]
    if len(chosen) < num and data.meta.sequence_length >= length:
        of_sequences = [data.sequence(i)[:length].tolist() for i in range(len(data))]
        whole = [ids for ids in of_sequences if data.meta.eos_id not in ids and ids not in chosen]
        chosen += [whole[i] for i in _spread(len(whole), num - len(chosen))]
    if len(chosen) < 2:
        raise TrainerError(
            f"{data.folder} has fewer than 2 texts of {prompt_tokens} + {new_tokens} tokens to take prompts from; give "
            "more data, or a smaller --prompt-tokens or --new-tokens"
        )
    ids = torch.tensor(chosen)
    return PromptSet(ids[:, :prompt_tokens], ids[:, prompt_tokens:])


def _spread(total: int, count: int) -> list[int]:
    """Up to ``count`` of 0 … total - 1, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)).tolist() if total else []


def evaluate_generations(
    model: Model,
    prompts: Tensor,
    num_tokens: int,
    *,
    score: Score | None,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    on_temperature: Callable[[], None] = lambda: None,
) -> dict[float, TextScore]:
    """What a model writes after prompts, at several temperatures.

    Args:
        model: left in evaluation mode.
        prompts: int64 [n, L].
        num_tokens: the longest continuation.
        score: the teacher; None leaves its figure out.
        temperatures: 0 is greedy.
        seed: of the samples and the intervals.
        on_temperature: called after every temperature.
    """
    found = {}
    for temperature in temperatures:
        texts = continuations(model, prompts, num_tokens, temperature, seed)
        eos_id = model.student.config.eos_id if isinstance(model, LatentModel) else model.config.eos_id
        found[temperature] = score_texts(prompts, texts, eos_id, score, seed=seed)
        on_temperature()
    return found


def continuations(model: Model, prompts: Tensor, num_tokens: int, temperature: float, seed: int) -> list[Text]:
    """One continuation of each of prompts [n, L]."""
    device = model.device
    at_once = max(1, min(len(prompts), _LOGITS_AT_ONCE // (model.chunk_size * model.vocab_size)))
    texts = []
    for first in range(0, len(prompts), at_once):
        params = SamplingParams(temperature=temperature, seed=seed + first)
        made = generate_batch(model, prompts[first : first + at_once].to(device), num_tokens, params)
        for ids, length in zip(made.token_ids.tolist(), made.lengths.tolist(), strict=True):
            texts.append(Text(ids[:length], length < num_tokens))
    return texts


def score_texts(
    prompts: Tensor, texts: Sequence[Text], eos_id: int, score: Score | None, *, seed: int = 0
) -> TextScore:
    """Figures of continuations of prompts [n, L], from wherever they are.

    Args:
        prompts: int64 [n, L].
        texts: one for each.
        eos_id: scored behind those that ended.
        score: the teacher; None leaves its figure out.
        seed: of the intervals, which redraw prompts.
    """
    estimate = interval = None
    if score is not None:
        scored = score(prompts.tolist(), [[*text.ids, *([eos_id] if text.ended else [])] for text in texts])
        sums = -torch.tensor([float(logprobs.sum(dtype=np.float64)) for logprobs in scored], dtype=torch.float64)
        counts = torch.tensor([len(logprobs) for logprobs in scored])
        estimate = ratio_of_sums(sums, counts, torch.arange(len(scored)), seed)
    stats = text_stats([text.ids for text in texts])
    written = [text.ids for text in texts if text.ids]
    if len(written) > 1:
        repeated, lengths = torch.tensor([[num_repeated(ids), len(ids)] for ids in written]).T
        interval = ratio_of_sums(repeated, lengths, torch.arange(len(written)), seed)[1:]
    return TextScore(estimate, stats.distinct_3, stats.repetition, stats.mean_length, interval)

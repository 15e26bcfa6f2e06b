"""BrierLM of a model: how it continues prefixes of held-out text, against how the text goes on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentforge.model.batch_generation import generate_batch
from latentforge.model.latent_model import LatentModel
from latentforge.model.metrics.brier import BrierScore, brier_score, brier_values, brier_values_of_logprobs
from latentforge.model.sampling import SamplingParams
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.likelihood import Model

NUM_TARGETS = 8
# Every K that divides it has each of its phases equally often, so that models of those K share their prefixes.
_COMMON_PHASES = 8
_BRIER = 5
_TRIES = 100
_LOGITS_AT_ONCE = 2**26
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class PrefixGroup:
    """Prefixes of one length and how the text goes on: ``prefixes`` [n, L], ``targets`` [n, 8], ``sequences`` [n]."""

    prefixes: Tensor
    targets: Tensor
    sequences: Tensor

    def cut(self, chunk_size: int) -> tuple[Tensor, Tensor]:
        """The prefixes' whole chunks and the tokens of the phase behind them."""
        whole = self.prefixes.shape[1] // chunk_size * chunk_size
        return self.prefixes[:, :whole], self.prefixes[:, whole:]


# Estimates of Brier-1 to Brier-8 at each place of a group, float64 [n, 8], from samples of a seed.
Values = Callable[[PrefixGroup, int], Tensor]


def choose_prefixes(
    sequences: Sequence[Tensor],
    num: int,
    *,
    chunk_size: int,
    prefix_tokens: int,
    eos_id: int,
    bos_id: int | None = None,
    seed: int,
) -> list[PrefixGroup]:
    """About ``num`` places in held-out sequences, each length modulo K equally often.

    Lengths are ``prefix_tokens`` rounded up to a multiple of lcm(K, 8), and the next ones up to the next multiple. The
    same arguments give the same places to models whose K divides 8, the token-level one among them. No text ends among
    the targets, because a sample that ends has no more tokens to compare.

    Args:
        sequences: int64 [L] each.
        num: rounded up so that every length has the same number.
        chunk_size: K.
        prefix_tokens: the least length.
        eos_id: ends a text.
        bos_id: the first token of every prefix; None leaves that as it is.
        seed: of the places.

    Raises:
        TrainerError: the sequences are too short.
    """
    phases = math.lcm(chunk_size, _COMMON_PHASES)
    base = -(-prefix_tokens // phases) * phases
    needed = base + phases - 1 + NUM_TARGETS
    if any(len(s) < needed for s in sequences):
        raise TrainerError(
            f"sequences of {min(map(len, sequences))} tokens, but BrierLM reads prefixes of up to "
            f"{base + phases - 1} and the {NUM_TARGETS} tokens after them; give longer sequences or set a smaller "
            "--prompt-tokens"
        )
    random = np.random.default_rng([_BRIER, seed])
    groups = []
    slot = 0
    for phase in range(phases):
        length = base + phase
        places = []
        for _ in range(-(-num // phases)):
            places.append((slot % len(sequences), _start(sequences[slot % len(sequences)], length, eos_id, random)))
            slot += 1
        windows = torch.stack([sequences[i][start : start + length + NUM_TARGETS] for i, start in places])
        if bos_id is not None:
            windows[:, 0] = bos_id
        of = torch.tensor([i for i, _ in places])
        groups.append(PrefixGroup(windows[:, :length], windows[:, length:], of))
    return groups


def _start(sequence: Tensor, length: int, eos_id: int, random: np.random.Generator) -> int:
    start = 0
    for _ in range(_TRIES):
        start = int(random.integers(len(sequence) - length - NUM_TARGETS + 1))
        if not (sequence[start + length : start + length + NUM_TARGETS] == eos_id).any():
            break
    return start


def evaluate_brier(
    values: Values,
    groups: Sequence[PrefixGroup],
    *,
    chunk_size: int,
    seed: int = 0,
    on_group: Callable[[], None] = lambda: None,
) -> BrierScore:
    """BrierLM, Brier-1 to Brier-4 and Brier-8 over all phases.

    Args:
        values: of a model, such as :func:`model_values`.
        groups: of :func:`choose_prefixes` with the same K.
        chunk_size: K; the phase of a prefix is its length modulo K.
        seed: of samples and interval.
        on_group: called after every group.

    Raises:
        ValueError: all places are in one sequence.
    """
    found, phases, clusters = [], [], []
    for index, group in enumerate(groups):
        found.append(values(group, int(np.random.default_rng([_BRIER, seed, index]).integers(2**62))).cpu())
        phases.append(torch.full((len(group.prefixes),), group.prefixes.shape[1] % chunk_size))
        clusters.append(group.sequences)
        on_group()
    return brier_score(torch.cat(found), torch.cat(phases), torch.cat(clusters), num_phases=chunk_size, seed=seed)


def model_values(model: Model, num_samples: int) -> Values:
    """Of a model's samples at temperature 1, which go on behind an end of text.

    A model that knows the probability of what it writes gives far steadier estimates with it, and can be asked about
    n-grams that start anywhere in a chunk: it reads the tokens of the phase and goes on behind them. With an energy
    head neither is so, because the tokens before it in a chunk say something about the latent. There samples are
    compared with each other and with the text, and each n-gram starts a chunk, behind a prefix with pads on its left.
    """
    if isinstance(model, LatentModel) and model.student.config.head == "energy":
        return lambda group, seed: _values_of_samples(model, group, num_samples, seed)
    return lambda group, seed: _values_of_logprobs(model, group, num_samples, seed)


def _values_of_samples(model: Model, group: PrefixGroup, num_samples: int, seed: int) -> Tensor:
    rows = group.prefixes.repeat(num_samples, 1)
    ids, _ = continued(model, rows, rows[:, :0], NUM_TARGETS, seed)
    return brier_values(ids.view(num_samples, -1, NUM_TARGETS), group.targets.to(ids.device))


def _values_of_logprobs(model: Model, group: PrefixGroup, num_samples: int, seed: int) -> Tensor:
    chunks, phase = group.cut(model.chunk_size)
    num_tokens = phase.shape[1] + NUM_TARGETS
    _, samples = continued(model, chunks.repeat(num_samples, 1), phase.repeat(num_samples, 1), num_tokens, seed)
    _, targets = continued(model, chunks, torch.cat([phase, group.targets], 1), num_tokens, seed)
    return brier_values_of_logprobs(samples.view(num_samples, -1, NUM_TARGETS), targets)


def continued(model: Model, prompts: Tensor, forced: Tensor, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """The last 8 of ``num_tokens`` tokens behind prompts, and their log probabilities, [b, 8] each.

    Texts do not end. The first tokens are the ``forced`` ones, [b, f], the others are drawn at temperature 1.
    """
    at_once = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // (model.chunk_size * model.vocab_size)))
    parts = []
    for first in range(0, len(prompts), at_once):
        rows = slice(first, first + at_once)
        params = SamplingParams(seed=seed + first)
        parts.append(generate_batch(model, prompts[rows], num_tokens, params, forced=forced[rows], stop_at_eos=False))
    ids, logprobs = (torch.cat([getattr(part, name) for part in parts]) for name in ("token_ids", "logprobs"))
    return ids[:, -NUM_TARGETS:], logprobs[:, -NUM_TARGETS:]

"""BrierLM of a model: its samples after prefixes of held-out text, against how the text goes on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentforge.model.batch_generation import generate_batch
from latentforge.model.metrics.brier import BrierScore, brier_score, brier_values
from latentforge.model.sampling import SamplingParams
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.likelihood import Model, device_of_model

NUM_TARGETS = 8
# Every K that divides it has each of its phases equally often, so that models of those K share their prefixes.
_COMMON_PHASES = 8
_BRIER = 5
_TRIES = 100
_LOGITS_AT_ONCE = 2**26
_ROWS_AT_ONCE = 256

Draw = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class PrefixGroup:
    """Prefixes of one length and how the text goes on: ``prefixes`` [n, L], ``targets`` [n, 8], ``sequences`` [n]."""

    prefixes: Tensor
    targets: Tensor
    sequences: Tensor


def choose_prefixes(
    sequences: Sequence[Tensor], num: int, *, chunk_size: int, prefix_tokens: int, eos_id: int, seed: int
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
    draw: Draw,
    groups: Sequence[PrefixGroup],
    *,
    chunk_size: int,
    seed: int = 0,
    on_group: Callable[[], None] = lambda: None,
) -> BrierScore:
    """BrierLM, Brier-1 to Brier-4 and Brier-8 over all pairs of samples and all phases.

    Args:
        draw: given prefixes [n, L], how many tokens, and a seed, gives m continuations of each, [m, n, tokens], such as
            :func:`model_draw`.
        groups: of :func:`choose_prefixes` with the same K.
        chunk_size: K; the phase of a prefix is its length modulo K.
        seed: of samples and interval.
        on_group: called after every group.

    Raises:
        ValueError: fewer than two samples, or all places are in one sequence.
    """
    values, phases, clusters = [], [], []
    for index, group in enumerate(groups):
        drawn = draw(group.prefixes, NUM_TARGETS, int(np.random.default_rng([_BRIER, seed, index]).integers(2**62)))
        values.append(brier_values(drawn.cpu(), group.targets))
        phases.append(torch.full((len(group.prefixes),), group.prefixes.shape[1] % chunk_size))
        clusters.append(group.sequences)
        on_group()
    return brier_score(torch.cat(values), torch.cat(phases), torch.cat(clusters), num_phases=chunk_size, seed=seed)


def model_draw(model: Model, num_samples: int) -> Draw:
    """Continuations by a model at temperature 1; they go on behind an end of text."""
    device = device_of_model(model)
    at_once = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // (model.chunk_size * model.vocab_size)))

    def draw(prefixes: Tensor, num_tokens: int, seed: int) -> Tensor:
        rows = prefixes.repeat(num_samples, 1).to(device)
        parts = []
        for first in range(0, len(rows), at_once):
            params = SamplingParams(seed=seed + first)
            drawn = generate_batch(model, rows[first : first + at_once], num_tokens, params, stop_at_eos=False)
            parts.append(drawn.token_ids)
        return torch.cat(parts).view(num_samples, len(prefixes), num_tokens)

    return draw

"""What the teacher accepts of a student's drafts of 8 tokens: the use that acceptance estimates without any draft."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentforge.model.metrics.acceptance import accepted_of_drafts
from latentforge.trainer.evaluate.brier import NUM_TARGETS, PrefixGroup, continued
from latentforge.trainer.evaluate.estimate import Estimate, mean, ratio_of_sums
from latentforge.trainer.evaluate.generations import Score
from latentforge.trainer.evaluate.likelihood import Model

_DRAFTS = 9


@dataclass(frozen=True)
class Drafts:
    """Of n drafts of 8 tokens.

    Attributes:
        accepted: probability that a draft is accepted up to each of its tokens, float64 [n, 8].
        sequences: of which held-out sequence the text before a draft is, int64 [n].
    """

    accepted: Tensor
    sequences: Tensor

    def mean_accepted(self, seed: int = 0) -> Estimate:
        """Tokens accepted of a draft, without the one that the teacher adds; the interval redraws sequences."""
        return mean(self.accepted.sum(1), self.sequences, seed)

    def by_position(self, seed: int = 0) -> list[Estimate]:
        """Probability that each token is accepted where those before it were."""
        reached = torch.cat([torch.ones(len(self.accepted), 1), self.accepted[:, :-1]], 1)
        columns = zip(self.accepted.T, reached.T, strict=True)
        return [ratio_of_sums(accepted, tried, self.sequences, seed) for accepted, tried in columns]


def evaluate_drafts(
    model: Model,
    groups: Sequence[PrefixGroup],
    score: Score,
    *,
    seed: int = 0,
    on_group: Callable[[], None] = lambda: None,
) -> Drafts:
    """Has a model draft behind prefixes of held-out text, at temperature 1, and its teacher score what it drafted.

    No acceptance is drawn: each draft gives the probability of it, so the mean is that of speculative sampling, without
    bias and with less noise. Drafts begin at every place in a chunk equally often.

    Args:
        model: one whose text has a likelihood, so not with the energy head; left in evaluation mode.
        groups: of ``brier.choose_prefixes``.
        score: the teacher.
        seed: of the drafts.
        on_group: called after every group.
    """
    accepted = []
    for index, group in enumerate(groups):
        chunks, phase = group.cut(model.chunk_size)
        own_seed = int(np.random.default_rng([_DRAFTS, seed, index]).integers(2**62))
        ids, logprobs = continued(model, chunks, phase, phase.shape[1] + NUM_TARGETS, own_seed)
        of_teacher = torch.from_numpy(np.stack(score(group.prefixes.tolist(), ids.tolist())))
        # Float64: what is hardly ever accepted is still no 0, and a share of it is a number.
        accepted.append(accepted_of_drafts(of_teacher.double(), logprobs.cpu().double()))
        on_group()
    return Drafts(torch.cat(accepted), torch.cat([group.sequences for group in groups]))

"""Autoencoders alone, at K = 8, whose tokens start with codes of equal length in the latent."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from experiments.plan import AutoencoderPlan
from experiments.results import ModelResult
from latentforge.trainer.results import AutoencoderResult


def code_plans(sizes: Iterable[int], seeds: Sequence[int]) -> list[AutoencoderPlan]:
    """One for each size of the latent and seed."""
    return [
        AutoencoderPlan("demo", 8, latent_size=size, seed=seed, equal_codes=True) for size in sizes for seed in seeds
    ]


def code_results(found: Mapping[AutoencoderPlan, AutoencoderResult]) -> list[ModelResult]:
    """``ae_d<D>`` and ``ae_d<D>_noisy``, see :func:`exact_tokens`."""
    results = []
    for size in dict.fromkeys(plan.d for plan in found):
        of = [result for plan, result in found.items() if plan.d == size]
        results.append(exact_tokens(f"ae_d{size}", "token_exact", of))
        results.append(exact_tokens(f"ae_d{size}_noisy", "token_exact_noisy", of))
    return results


def exact_tokens(
    name: str, figure: Literal["token_exact", "token_exact_noisy"], found: Sequence[AutoencoderResult]
) -> ModelResult:
    """The mean share of held-out tokens over autoencoders of different seeds, between the lowest and the highest.

    Beside it stands what the same autoencoders had before their first step.
    """
    trained = [float(getattr(result, figure)) for result in found]
    untrained = [float(getattr(result.untrained, figure)) for result in found if result.untrained is not None]
    return ModelResult.compared(
        name,
        statistics.mean(trained),
        "share of tokens",
        baseline="untrained",
        # Evaluations of older versions have none.
        baseline_value=statistics.mean(untrained) if len(untrained) == len(trained) else None,
        low=min(trained) if len(trained) > 1 else None,
        high=max(trained) if len(trained) > 1 else None,
        seeds=len(trained),
    )

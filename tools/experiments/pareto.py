"""The models of the Pareto chart."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tools.experiments.plan import DECODER, Model, Size, Vocabulary, denoising_autoencoder
from tools.experiments.scales import Scale

_WINDOW_TOKENS = 8


def pareto_models(scale: Scale) -> Iterator[Model]:
    """The chart's models: every token-level size and every student, at both vocabularies."""
    for vocabulary, tokens in scale.tokens.items():
        for size in scale.token_sizes:
            yield _token_level(vocabulary, size, tokens)
        for k in scale.chunk_sizes:
            for size in scale.student_sizes:
                yield _student(vocabulary, size, tokens, k)
    yield from _fast_models(scale)


def seed_models(scale: Scale) -> Iterator[Model]:
    """More seeds of the pairs whose difference is a bar's: the smallest size at K=4 and 8, and its rival."""
    size = scale.student_sizes[0]
    for seed in scale.seeds[1:]:
        yield replace(_token_level("demo", size, scale.tokens["demo"]), seed=seed)
        for k in (4, 8):
            yield _student("demo", size, scale.tokens["demo"], k, seed=seed)


def _token_level(vocabulary: Vocabulary, size: Size, tokens: int) -> Model:
    return Model("pareto", "token-level", vocabulary, size, tokens)


def _student(vocabulary: Vocabulary, size: Size, tokens: int, k: int, *, group: str = "pareto", seed: int = 0) -> Model:
    """A student and an autoencoder that sees no other text, so that it and a token-level model have seen as much."""
    autoencoder = denoising_autoencoder(vocabulary, k, text_tokens=tokens, seed=seed)
    changes = _changes(vocabulary, k)
    return Model(group, "student", vocabulary, size, tokens, k, seed=seed, changes=changes, autoencoder=autoencoder)


def _fast_models(scale: Scale) -> Iterator[Model]:
    """Backbones so large that their steps are most of the time: the fastest settings, and their rivals."""
    tokens, k = scale.tokens["large"], max(scale.chunk_sizes)
    for size in scale.fast_sizes:
        yield Model("fast", "token-level", "large", size, tokens)
        yield _student("large", size, tokens, k, group="fast")


def _changes(vocabulary: Vocabulary, k: int) -> dict[str, Any]:
    """What differs from the recipe: the width of token embeddings, the correction's rank and, for chunks of fewer
    tokens, how many its decoder reads.

    Of the embeddings only the tokens' own rows are read, so that more of them cost next to nothing when writing. The
    correction is read whole for every token: at a large vocabulary its rank decides the speed. And every decoder reads
    about as many tokens before its chunk, since a window of one short chunk costs likelihood.
    """
    changes: dict[str, Any] = {"student.model.embed_size": 128}
    if vocabulary == "large":
        changes[f"{DECODER}rank"] = 32
    if k < _WINDOW_TOKENS:
        changes[f"{DECODER}window"] = _WINDOW_TOKENS // k
    return changes

"""The models of the Pareto chart."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from experiments.plan import DECODER, FAST, Model, Size, Vocabulary, denoising_autoencoder
from experiments.scales import Scale

_WINDOW_TOKENS = 8
# Of the chart's tokens, where it is asked what more of them do.
_TIMES = (2, 4)


def pareto_models(scale: Scale) -> Iterator[Model]:
    """The chart's models: every token-level size and every student, at both vocabularies."""
    for vocabulary, tokens in scale.tokens.items():
        for size in scale.token_sizes:
            yield _token_level(vocabulary, size, tokens)
        for k in scale.chunk_sizes:
            for size in scale.student_sizes:
                yield _student(scale, vocabulary, size, tokens, k)
    yield from _fast_models(scale)


def seed_models(scale: Scale) -> Iterator[Model]:
    """More seeds of the pairs whose difference is a bar's: the smallest size at K=4 and 8, and its baseline."""
    size = scale.student_sizes[0]
    for seed in scale.seeds[1:]:
        yield replace(_token_level("demo", size, scale.tokens["demo"]), seed=seed)
        for k in (4, 8):
            yield _student(scale, "demo", size, scale.tokens["demo"], k, seed=seed)


def longer_models(scale: Scale) -> list[Model]:
    """Students of the largest K, in the chart's smallest and largest size, and the largest token-level models.

    As the chart has them, and after several times as many tokens: whether a lead lasts. At the large vocabulary, where
    size pays more, the second baseline is the smaller of the fast ones.
    """
    student_sizes = scale.student_sizes[0], scale.student_sizes[-1]
    baselines = {"demo": scale.token_sizes[-2:], "large": (scale.token_sizes[-1], scale.fast_sizes[0])}
    chart = [
        m
        for m in pareto_models(scale)
        if (m.k == max(scale.chunk_sizes) and m.size in student_sizes)
        or (m.kind == "token-level" and m.size in baselines[m.vocabulary])
    ]
    return [*chart, *(_longer(m, times) for times in _TIMES for m in chart)]


def _longer(model: Model, times: int) -> Model:
    """A model that learns from as many times the tokens, and its autoencoder from the same text."""
    tokens = times * model.tokens
    autoencoder = model.autoencoder and replace(model.autoencoder, text_tokens=tokens)
    return replace(model, group=f"tokens-x{times}", tokens=tokens, autoencoder=autoencoder)


def _token_level(vocabulary: Vocabulary, size: Size, tokens: int, *, group: str = "pareto") -> Model:
    return Model(group, "token-level", vocabulary, size, tokens)


def _student(
    scale: Scale, vocabulary: Vocabulary, size: Size, tokens: int, k: int, *, group: str = "pareto", seed: int = 0
) -> Model:
    """A student and an autoencoder that sees no other text, so that it and a token-level model have seen as much."""
    autoencoder = denoising_autoencoder(vocabulary, k, text_tokens=tokens, seed=seed)
    changes = _changes(scale, vocabulary, k, autoencoder.width)
    return Model(group, "student", vocabulary, size, tokens, k, seed=seed, changes=changes, autoencoder=autoencoder)


def _fast_models(scale: Scale) -> Iterator[Model]:
    """Backbones so large that their steps are most of the time: the fastest settings, and their baselines."""
    tokens, k = scale.tokens["large"], max(scale.chunk_sizes)
    for size in scale.fast_sizes:
        yield _token_level("large", size, tokens, group=FAST)
        yield _student(scale, "large", size, tokens, k, group=FAST)


def _changes(scale: Scale, vocabulary: Vocabulary, k: int, feature_width: int) -> dict[str, Any]:
    """What differs from the recipe: the width of token embeddings and of the decoder; for chunks of fewer tokens, how
    many the decoder reads; and at a large vocabulary the output.

    Of the embeddings only the tokens' own vectors are read, so that wider ones cost next to nothing when writing, and a
    wider decoder gives more likelihood than it takes speed. Every decoder reads about as many tokens before its chunk,
    since a window of one short chunk costs likelihood. The correction is read whole for every token: where the
    vocabulary is large it may correct the frequent ids alone (a small one has none that are rare enough), and logit
    features made of the hidden state there need no latent, only the autoencoder's embeddings.
    """
    changes: dict[str, Any] = {"student.model.embed_size": 128, f"{DECODER}width": 256}
    if vocabulary == "large":
        if scale.frequent_ids is not None:
            changes[f"{DECODER}frequent_ids"] = scale.frequent_ids
        changes |= {
            "student.model.logit_features.kind": "embeddings",
            "student.model.logit_features.width": feature_width,
        }
    if k < _WINDOW_TOKENS:
        changes[f"{DECODER}window"] = _WINDOW_TOKENS // k
    return changes

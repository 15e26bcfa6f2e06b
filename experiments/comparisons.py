"""What is compared, one thing varied at a time, at a scale's ablation size and tokens."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, get_args

from experiments.pareto import longer_models
from experiments.plan import DECODER, AutoencoderPlan, Kind, Model, Size, Vocabulary, denoising_autoencoder
from experiments.scales import Scale
from latentforge.trainer.config.objectives import DEFAULT_OBJECTIVE

SEED_OBJECTIVE = "regressed-latent"
OBJECTIVES = (
    SEED_OBJECTIVE,
    "energy",
    "chunk-ce",
    "chunk-kd",
    "chunk-kd-heavy",
    "chunk-tv",
    "chunk-reverse-kl",
    "chunk-kd-linear",
    "chunk-kd-mse",
    "chunk-kd-energy",
)
# Whose students draft for their teacher; the first is what the others are compared with.
DRAFTING = (DEFAULT_OBJECTIVE, "chunk-tv", "chunk-reverse-kl")
_DECODERS: dict[str, dict[str, Any]] = {
    "gru128": {},
    "gru256": {"width": 256},
    "gru128x2": {"num_layers": 2},
    "rank64": {"rank": 64},
    "rank32": {"rank": 32},
    "window0": {"window": 0},
    "window2": {"window": 2},
    "transformer192": {"kind": "transformer", "width": 192},
    "transformer192x2": {"kind": "transformer", "width": 192, "num_layers": 2},
}
_FEATURES: dict[str, dict[str, Any]] = {
    f"{kind}-rank{rank}": {
        "student.model.logit_features.kind": kind,
        # As wide as the autoencoder's.
        "student.model.logit_features.width": AutoencoderPlan("large", 8).width,
        f"{DECODER}rank": rank,
    }
    for rank in (32, 128)
    for kind in ("autoencoder", "linear")
}
# Autoencoders that might make the latent worth more: one that learns for longer, and one that has half of a chunk
# hidden from it.
LONGER, DENOISING, OWN_TEXT, EMBEDDINGS = "longer", "longer-denoising", "longer-denoising-own-text", "embeddings"
_LATENTS = {
    LONGER: AutoencoderPlan("large", 8, times=3),
    "denoising": AutoencoderPlan("large", 8, token_dropout=0.5),
    DENOISING: denoising_autoencoder("large", 8),
}
LINEAR, LATENT = "linear-rank32", "autoencoder-rank32"
_CLAIMED = (LINEAR, LATENT, LONGER, DENOISING, OWN_TEXT, EMBEDDINGS)


class Comparison(StrEnum):
    """What is varied while everything else stays."""

    objectives = "objectives"
    equal_time = "equal-time"
    drafts = "drafts"
    decoders = "decoders"
    logit_features = "logit-features"
    latents = "latents"
    init = "init"
    induction = "induction"
    on_policy = "on-policy"
    rates = "rates"
    tokens = "tokens"


def objective_models(scale: Scale) -> list[Model]:
    """One student per objective and seed."""
    return [
        _ablation(scale, objective, "demo", objective=objective, seed=seed)
        for seed in scale.seeds
        for objective in OBJECTIVES
    ]


def draft_models(scale: Scale) -> list[Model]:
    """Students that learn what a draft is measured by, beside the default; two seeds, half of the ablation tokens."""
    models = [
        _ablation(scale, f"drafts-{objective}", "demo", objective=objective, seed=seed, writes=False)
        for seed in scale.seeds[:2]
        for objective in DRAFTING
    ]
    return [replace(model, tokens=scale.ablation_tokens // 2) for model in models]


def equal_time_models(scale: Scale, rates: Mapping[str, float]) -> list[Model]:
    """Students of every objective that learn for as long as the regressed latent takes for the ablation tokens.

    Over the seeds the regressed latent and the default; the others once.

    Args:
        scale: of the experiment.
        rates: tokens/s that each objective learns, by name; of runs that went side by side.
    """
    claimed = (SEED_OBJECTIVE, DEFAULT_OBJECTIVE)
    length = scale.sequence_length
    tokens = {
        name: round(scale.ablation_tokens * rates[name] / rates[SEED_OBJECTIVE] / length) * length
        for name in OBJECTIVES
    }
    return [
        replace(_ablation(scale, f"time-{name}", "demo", objective=name, seed=seed), tokens=max(length, tokens[name]))
        for seed in scale.seeds
        for name in OBJECTIVES
        if seed == scale.seeds[0] or name in claimed
    ]


def decoder_models(scale: Scale) -> list[Model]:
    """Chunk decoders beside each other, each of which differs from the first in one thing."""
    return [
        _ablation(scale, name, "demo", changes={DECODER + field: value for field, value in values.items()})
        for name, values in _DECODERS.items()
    ]


def feature_models(scale: Scale) -> list[Model]:
    """Whether logits from the latent earn their place at the large vocabulary, beside corrections of two ranks."""
    return [_features(scale, name) for name in _FEATURES]


def latent_models(scale: Scale) -> list[Model]:
    """Whether latents of other autoencoders do, where the correction is short of rank.

    Over the seeds, each with autoencoders of its own: what a difference is claimed of; the others once.
    """
    linear, latent = _features(scale, LINEAR), _features(scale, LATENT)
    # Whether it is the hidden tokens or the text beyond the student's that makes such an autoencoder worth more.
    own_text = denoising_autoencoder("large", 8, text_tokens=latent.tokens)
    plans = _LATENTS | {OWN_TEXT: own_text}
    # Whether it is the latent, or the token embeddings that come with it.
    features = {"student.model.logit_features.kind": "embeddings"}
    embeddings = replace(latent, group=EMBEDDINGS, autoencoder=own_text, changes=latent.changes | features)
    others = [replace(latent, group=name, autoencoder=plan) for name, plan in plans.items()]
    return [
        _of_seed(model, seed)
        for seed in scale.seeds
        for model in (linear, latent, *others, embeddings)
        if seed == scale.seeds[0] or model.group in _CLAIMED
    ]


def _of_seed(model: Model, seed: int) -> Model:
    """A student and the autoencoder that it reads; a linear map reads none, so that any will do."""
    # A student of the first seed stays as the other comparison that trains it has it.
    if model.group == LINEAR or seed == model.seed:
        return replace(model, seed=seed)
    return replace(model, seed=seed, autoencoder=replace(model.autoencoder_plan, seed=seed))


def _features(scale: Scale, name: str) -> Model:
    return _ablation(scale, name, "large", changes=_FEATURES[name])


def init_models(scale: Scale) -> list[Model]:
    """A student from scratch, one whose backbone starts from the token-level student's, and that one."""
    baseline = Model("init", "token-level", "demo", scale.ablation_size, scale.ablation_tokens)
    return [baseline, _ablation(scale, "scratch", "demo"), _ablation(scale, "init", "demo", backbone_of=baseline.run)]


def rate_models(scale: Scale) -> list[Model]:
    """Both kinds of student in two sizes, at learning rates around the one that all experiments take."""

    def at(kind: Kind, size: Size, factor: float) -> Model:
        rate = factor * scale.learning_rate
        k = 1 if kind == "token-level" else 8
        changes = {"student.optim.lr": rate}
        return Model(f"rate{rate:g}", kind, "demo", size, scale.ablation_tokens, k, changes=changes)

    sizes = dict.fromkeys((scale.ablation_size, scale.student_sizes[-1]))
    return [at(kind, size, factor) for kind in get_args(Kind) for size in sizes for factor in (0.5, 1.0, 2.0)]


def induction_models(scale: Scale) -> list[Model]:
    """Both kinds of student with and without an induction head, over the seeds."""

    def of(kind: Kind, seed: int, *, induction: bool) -> Model:
        group, k = "induction" if induction else "no-induction", 1 if kind == "token-level" else 8
        size, tokens = scale.ablation_size, scale.ablation_tokens
        return Model(group, kind, "demo", size, tokens, k, seed=seed, induction=induction)

    return [of(kind, seed, induction=i) for seed in scale.seeds for i in (True, False) for kind in get_args(Kind)]


def on_policy_models(scale: Scale) -> list[Model]:
    """Both kinds of student, of which the one's second half is half on-policy steps, over the seeds."""

    def of(kind: Kind, seed: int, share: float) -> Model:
        group, k = "on-policy" if share else "off-policy", 1 if kind == "token-level" else 8
        size, tokens = scale.ablation_size, scale.ablation_tokens
        return Model(group, kind, "demo", size, tokens, k, seed=seed, changes={"student.on_policy.share": share})

    return [of(kind, seed, share) for seed in scale.seeds for share in (0.5, 0.0) for kind in get_args(Kind)]


def of_groups(models: Iterable[Model], groups: Collection[str]) -> list[Model]:
    """The models of some groups.

    Raises:
        ValueError: one of these groups has no model.
    """
    models = list(models)
    known = dict.fromkeys(m.group for m in models)
    if unknown := sorted(set(groups) - set(known)):
        raise ValueError(f"there is no group {unknown[0]!r}; there are {', '.join(known)}")
    return [m for m in models if m.group in groups]


# All but those whose models depend on what others measured.
COMPARISONS: dict[Comparison, Callable[[Scale], list[Model]]] = {
    Comparison.objectives: objective_models,
    Comparison.drafts: draft_models,
    Comparison.decoders: decoder_models,
    Comparison.logit_features: feature_models,
    Comparison.latents: latent_models,
    Comparison.init: init_models,
    Comparison.induction: induction_models,
    Comparison.on_policy: on_policy_models,
    Comparison.rates: rate_models,
    Comparison.tokens: longer_models,
}


def autoencoder_models(scale: Scale) -> list[Model]:
    """A student for each autoencoder, over K at D = 32·K, over D and over the width at K=8.

    All that it writes comes out of the latent that it predicts, so that its tokens show what of its error an
    autoencoder forgives.
    """
    over_k = [AutoencoderPlan("demo", k) for k in (2, 4, 8, 16)]
    over_d = [AutoencoderPlan("demo", 8, latent_size=d) for d in (64, 128, 512)]
    over_width = [AutoencoderPlan("demo", 8, hidden_size=width) for width in (32, 128)]
    return [
        _ablation(scale, f"ae-d{plan.d}-w{plan.width}", "demo", plan.k, objective=SEED_OBJECTIVE, autoencoder=plan)
        for plan in (*over_k, *over_d, *over_width)
    ]


def _ablation(scale: Scale, group: str, vocabulary: Vocabulary, k: int = 8, **more: Any) -> Model:
    return Model(group, "student", vocabulary, scale.ablation_size, scale.ablation_tokens, k, **more)

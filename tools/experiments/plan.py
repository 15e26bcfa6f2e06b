"""What is trained: models as data, and how large an experiment is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal


class ScaleName(StrEnum):
    """The scales that a command takes."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"


class Comparison(StrEnum):
    """What is varied while everything else stays."""

    objectives = "objectives"
    decoders = "decoders"
    rows = "rows"
    init = "init"


Vocabulary = Literal["demo", "large"]
Kind = Literal["student", "token-level"]


@dataclass(frozen=True)
class Size:
    """A backbone: layers × width, heads of 64 dimensions."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    def values(self) -> dict[str, Any]:
        """A recipe's values."""
        heads = self.width // 64
        return {
            "student.model.num_layers": self.layers,
            "student.model.hidden_size": self.width,
            "student.model.num_heads": heads,
            "student.model.num_kv_heads": 1 if heads % 2 else heads // 2,
            "student.model.intermediate_size": 3 * self.width,
        }


@dataclass(frozen=True)
class Model:
    """One model of an experiment.

    Attributes:
        group: what it is one of, part of its run's name.
        kind: of student.
        vocabulary: whose tokens it writes.
        size: of the backbone.
        tokens: that it learns from.
        k: tokens per chunk; 1 for a token-level student.
        objective: its name, of a latent student.
        seed: of weights, order and noise.
        changes: further values of the recipe.
        backbone_of: the run of the token-level student whose backbone it starts from.
    """

    group: str
    kind: Kind
    vocabulary: Vocabulary
    size: Size
    tokens: int
    k: int = 1
    objective: str | None = None
    seed: int = 0
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    backbone_of: str | None = None

    @property
    def run(self) -> str:
        """The name of its run."""
        what = "token" if self.kind == "token-level" else f"k{self.k}"
        return f"{self.vocabulary}-{self.group}-{what}-{self.size}-s{self.seed}"


@dataclass(frozen=True)
class AutoencoderPlan:
    """One autoencoder.

    Attributes:
        vocabulary: whose tokens it takes.
        k: tokens per chunk.
        latent_size: D; None takes CALM's 32·K.
        hidden_size: width of a token inside it.
    """

    vocabulary: Vocabulary
    k: int
    latent_size: int | None = None
    hidden_size: int = 64

    @property
    def d(self) -> int:
        return self.latent_size or 32 * self.k

    @property
    def run(self) -> str:
        """The name of its run."""
        return f"{self.vocabulary}-autoencoder-k{self.k}-d{self.d}-w{self.hidden_size}"


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        token_sizes: of the token-level students.
        student_sizes: of the latent ones.
        chunk_sizes: K.
        tokens: that every model learns from, by vocabulary.
        autoencoder_steps: of every autoencoder.
        ablation_size, ablation_tokens: of the comparisons of objectives and chunk decoders.
        seeds: where a difference is claimed.
        evaluation: options of ``trainer evaluate``.
        speed_tokens, speed_repeats: new tokens of a timed request, and how often each is made.
        sequence_length: of the data.
        large_vocabulary, package_megabytes: of the second vocabulary, and the text that it is made of besides the
            standard library.
        learning_rates: of both kinds of student; each does best with its own (docs/results).
    """

    token_sizes: tuple[Size, ...]
    student_sizes: tuple[Size, ...]
    chunk_sizes: tuple[int, ...]
    tokens: dict[Vocabulary, int]
    autoencoder_steps: int
    ablation_size: Size
    ablation_tokens: int
    seeds: tuple[int, ...]
    evaluation: dict[str, int]
    speed_tokens: int
    speed_repeats: int
    sequence_length: int = 2048
    large_vocabulary: int = 32768
    package_megabytes: int = 20
    learning_rates: dict[Kind, float] = field(default_factory=lambda: {"student": 0.008, "token-level": 0.016})


_EVALUATION = {"--sequences": 20, "--bound-chunks": 128, "--brier-positions": 256, "--prompts": 32, "--new-tokens": 128}
SCALES: dict[ScaleName, Scale] = {
    # Minutes: shows that every stage works, measures nothing worth knowing.
    ScaleName.smoke: Scale(
        token_sizes=(Size(1, 64), Size(2, 64)),
        student_sizes=(Size(1, 64),),
        chunk_sizes=(4, 8),
        tokens={"demo": 8_192, "large": 8_192},
        autoencoder_steps=10,
        ablation_size=Size(1, 64),
        ablation_tokens=4_096,
        seeds=(0,),
        evaluation={"--sequences": 3, "--brier-positions": 16, "--prompts": 3, "--new-tokens": 16},
        speed_tokens=16,
        speed_repeats=2,
        sequence_length=512,
        package_megabytes=1,
    ),
    # Two CPU cores, about two hours.
    ScaleName.cpu: Scale(
        token_sizes=(Size(1, 64), Size(1, 128), Size(2, 128), Size(3, 192), Size(4, 256)),
        student_sizes=(Size(2, 128), Size(3, 192), Size(4, 256)),
        chunk_sizes=(2, 4, 8),
        tokens={"demo": 1_228_800, "large": 409_600},
        autoencoder_steps=300,
        ablation_size=Size(3, 128),
        ablation_tokens=409_600,
        seeds=(0, 1, 2),
        evaluation=_EVALUATION,
        speed_tokens=128,
        speed_repeats=5,
    ),
    ScaleName.gpu: Scale(
        token_sizes=(Size(2, 128), Size(4, 256), Size(6, 384), Size(8, 512), Size(12, 768)),
        student_sizes=(Size(4, 256), Size(8, 512), Size(12, 768)),
        chunk_sizes=(2, 4, 8),
        tokens={"demo": 20_480_000, "large": 20_480_000},
        autoencoder_steps=3000,
        ablation_size=Size(8, 512),
        ablation_tokens=10_240_000,
        seeds=(0, 1, 2),
        evaluation=_EVALUATION,
        speed_tokens=256,
        speed_repeats=5,
        package_megabytes=120,
    ),
}


def pareto_models(scale: Scale) -> Iterator[Model]:
    """The chart's models: every token-level size and every student, at both vocabularies."""
    for vocabulary, tokens in scale.tokens.items():
        for size in scale.token_sizes:
            yield _token_level(vocabulary, size, tokens)
        for k in scale.chunk_sizes:
            for size in scale.student_sizes:
                yield _student(vocabulary, size, tokens, k)
    yield fast_model(scale)


def fast_model(scale: Scale) -> Model:
    """The fastest setting: the largest backbone at K=8, beside a small decoder and a thin correction."""
    changes = {f"{_DECODER}width": 128, f"{_DECODER}rank": 32}
    return Model("fast", "student", "large", scale.student_sizes[-1], scale.tokens["large"], 8, changes=changes)


def seed_models(scale: Scale) -> Iterator[Model]:
    """More seeds of the pairs whose difference is a bar's: the middle size at K=4 and 8, and its rival."""
    size = scale.student_sizes[len(scale.student_sizes) // 2]
    for seed in scale.seeds[1:]:
        yield replace(_token_level("demo", size, scale.tokens["demo"]), seed=seed)
        for k in (4, 8):
            yield replace(_student("demo", size, scale.tokens["demo"], k), seed=seed)


OBJECTIVES = (
    "regressed-latent",
    "energy",
    "chunk-ce",
    "chunk-kd",
    "chunk-kd-tuned",
    "chunk-kd-linear",
    "chunk-kd-latent",
    "chunk-kd-mse",
    "chunk-kd-energy",
)
_DECODER = "student.model.chunk_decoder."
_DECODERS: dict[str, dict[str, Any]] = {
    "gru256": {},
    "gru128": {"width": 128},
    "gru256x2": {"num_layers": 2},
    "rank64": {"rank": 64},
    "rank32": {"rank": 32},
    "window0": {"window": 0},
    "window2": {"window": 2},
    "transformer192": {"kind": "transformer", "width": 192},
    "transformer192x2": {"kind": "transformer", "width": 192, "num_layers": 2},
}
_ROWS: dict[str, dict[str, Any]] = {
    f"{kind}-rank{rank}": {"student.model.rows.kind": kind, f"{_DECODER}rank": rank}
    for rank in (32, 128)
    for kind in ("autoencoder", "tuned", "linear")
}


def objective_models(scale: Scale) -> list[Model]:
    """One student per objective and seed."""
    return [
        _ablation(scale, objective, "demo", objective=objective, seed=seed)
        for seed in scale.seeds
        for objective in OBJECTIVES
    ]


def decoder_models(scale: Scale) -> list[Model]:
    """Chunk decoders beside each other, each of which differs from the first in one thing."""
    return [
        _ablation(scale, name, "demo", changes={_DECODER + field: value for field, value in values.items()})
        for name, values in _DECODERS.items()
    ]


def row_models(scale: Scale) -> list[Model]:
    """Whether rows from the latent earn their place at the large vocabulary, beside corrections of two ranks."""
    return [_ablation(scale, name, "large", changes=values) for name, values in _ROWS.items()]


def init_models(scale: Scale) -> list[Model]:
    """A student from scratch, one whose backbone starts from the token-level student's, and that one."""
    rival = Model("init", "token-level", "demo", scale.ablation_size, scale.ablation_tokens)
    return [rival, _ablation(scale, "scratch", "demo"), _ablation(scale, "init", "demo", backbone_of=rival.run)]


COMPARISONS: dict[Comparison, Callable[[Scale], list[Model]]] = {
    Comparison.objectives: objective_models,
    Comparison.decoders: decoder_models,
    Comparison.rows: row_models,
    Comparison.init: init_models,
}


def autoencoder_plans() -> list[AutoencoderPlan]:
    """Over K at D = 32·K; over D and over the width at K=8."""
    over_k = [AutoencoderPlan("demo", k) for k in (2, 4, 8, 16)]
    over_d = [AutoencoderPlan("demo", 8, latent_size=d) for d in (64, 128, 512)]
    over_width = [AutoencoderPlan("demo", 8, hidden_size=width) for width in (32, 128)]
    return [*over_k, *over_d, *over_width]


def _ablation(scale: Scale, group: str, vocabulary: Vocabulary, **more: Any) -> Model:
    return Model(group, "student", vocabulary, scale.ablation_size, scale.ablation_tokens, 8, **more)


def _token_level(vocabulary: Vocabulary, size: Size, tokens: int) -> Model:
    return Model("pareto", "token-level", vocabulary, size, tokens)


def _student(vocabulary: Vocabulary, size: Size, tokens: int, k: int) -> Model:
    # The correction is read whole for every token: at a large vocabulary its rank decides the speed.
    changes = {f"{_DECODER}rank": 64} if vocabulary == "large" else {}
    return Model("pareto", "student", vocabulary, size, tokens, k, changes=changes)

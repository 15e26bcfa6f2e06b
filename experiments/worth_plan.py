"""What the comparison of worth trains: architectures as data, each at several learning rates and budgets of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.mixture import CHOICE, MIXTURE
from experiments.plan import DECODER, AutoencoderPlan, Model, Size
from experiments.scales import HELD_OUT, SCALES, Scale, ScaleName

# Groups of architectures.
RECURRENT, POSITIONS, SPLIT, GRU, WINDOWED = "recurrent", "positions", "split", "gru", "windowed"
TOKEN_LEVEL, FACTORED = "token-level", "factored"
RATE = "student.optim.lr"
_OBJECTIVE = "chunk-ce"
_EMBED_SIZE = 128
_RANK = 128


@dataclass(frozen=True)
class WorthScale:
    """How large the comparison is.

    Attributes:
        lab: data, steps, evaluations and timing.
        unit: tokens of the smallest budget.
        budgets: in units, ascending.
        factors: of the lab's learning rate, that every architecture is tried at.
        chunk_sizes: K of the students with a GRU over the whole text.
        student_size: of the students' backbones.
        gru_widths: of the GRUs without a transformer; the first is the students' too.
        token_sizes: of the token-level models.
    """

    lab: Scale
    unit: int
    budgets: tuple[int, ...]
    factors: tuple[float, ...]
    chunk_sizes: tuple[int, ...]
    student_size: Size
    gru_widths: tuple[int, ...]
    token_sizes: tuple[Size, ...]

    @property
    def trial(self) -> int:
        """The budget at which learning rates are chosen: the smallest but one."""
        return self.budgets[:2][-1]


def architectures(scale: WorthScale) -> list[Model]:
    """What is compared: students without tokens or learning rate, which :func:`run_of` gives them.

    Another architecture is one more of these, by values of the recipe.
    """
    return [
        *_recurrent(scale),
        *_positions(scale),
        *_splits(scale),
        *_grus(scale),
        _windowed(scale),
        *_token_level(scale),
    ]


def name_of(group: str, model: Model) -> str:
    """An architecture's name, the same at all budgets: like recurrent-k8-4x256, gru-256 or factored-2x128."""
    if not model.size.layers:
        return f"{group}-{model.size.width}"
    return f"{group}-{model.size}" if model.kind == "token-level" else f"{group}-k{model.k}-{model.size}"


def chosen(compared: Sequence[Model], names: Sequence[str] | None) -> list[Model]:
    """The architectures of some groups or names; None takes all.

    Raises:
        ValueError: there is no such group or name.
    """
    if names is None:
        return list(compared)
    known = {name: a for a in compared for name in (a.group, name_of(a.group, a))}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"there is no architecture or group {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return [a for a in compared if {a.group, name_of(a.group, a)} & set(names)]


def run_of(scale: WorthScale, architecture: Model, budget: int, factor: float) -> Model:
    """An architecture as it is trained: at a budget in units, and a factor of the scale's learning rate."""
    rate = factor * scale.lab.learning_rate
    return replace(
        architecture,
        group=f"{architecture.group}-x{budget}-rate{rate:g}",
        tokens=budget * scale.unit,
        changes=architecture.changes | {RATE: rate},
    )


def trials(scale: WorthScale, architecture: Model) -> dict[float, Model]:
    """The runs among which an architecture's learning rate is chosen, by factor."""
    return {factor: run_of(scale, architecture, scale.trial, factor) for factor in scale.factors}


def budgets_up_to(scale: WorthScale, most: int | None) -> Sequence[int]:
    """The budgets that are no larger than one of them; None takes all.

    Raises:
        ValueError: it is none of them.
    """
    if most is None:
        return scale.budgets
    if most not in scale.budgets:
        raise ValueError(f"{most} is no budget of this scale; give one of {', '.join(map(str, scale.budgets))}")
    return scale.budgets[: scale.budgets.index(most) + 1]


def _recurrent(scale: WorthScale) -> Iterator[Model]:
    for k in scale.chunk_sizes:
        yield _writer(RECURRENT, scale.student_size, k, scale.gru_widths[0])


def _positions(scale: WorthScale) -> Iterator[Model]:
    """The recurrent students, but that the backbone reads the K tokens as so many positions."""
    for k in scale.chunk_sizes:
        writer = _writer(POSITIONS, scale.student_size, k, scale.gru_widths[0])
        yield replace(writer, changes=writer.changes | {"student.model.positions": "tokens"})


def _splits(scale: WorthScale) -> Iterator[Model]:
    """Students whose decoder is the second half of the backbone's layers."""
    for k in scale.chunk_sizes:
        writer = _writer(SPLIT, scale.student_size, k, scale.gru_widths[0])
        split = {f"{DECODER}kind": "split", f"{DECODER}num_layers": scale.student_size.layers // 2}
        yield replace(writer, changes=writer.changes | {"student.model.positions": "tokens"} | split)


def _grus(scale: WorthScale) -> Iterator[Model]:
    """The recurrent student without its transformer: K says nothing then but how texts are padded on the left."""
    for width in scale.gru_widths:
        yield _writer(GRU, Size(0, width), max(scale.chunk_sizes), width)


def _writer(group: str, size: Size, k: int, width: int) -> Model:
    changes = {
        "student.model.embed_size": _EMBED_SIZE,
        f"{DECODER}kind": "recurrent",
        f"{DECODER}width": width,
        f"{DECODER}rank": _RANK,
        "student.model.logit_features.kind": "none",
    }
    return _architecture(group, "student", size, k, changes, autoencoder=_unread_autoencoder(k))


def _unread_autoencoder(k: int) -> AutoencoderPlan:
    """One that a student's checkpoint has to have, though nothing reads it: of one step, and as small as can be."""
    return AutoencoderPlan("demo", k, latent_size=8, hidden_size=8, steps=1)


def _windowed(scale: WorthScale) -> Model:
    """The default student: a GRU that starts anew at each chunk, over what the autoencoder makes of the latent."""
    changes = {"student.model.embed_size": _EMBED_SIZE, f"{DECODER}width": scale.gru_widths[0], f"{DECODER}rank": _RANK}
    return _architecture(WINDOWED, "student", scale.student_size, max(scale.chunk_sizes), changes)


def _token_level(scale: WorthScale) -> Iterator[Model]:
    """Token-level models with the full output layer, and with one and a token table as cheap as a student's."""
    factored = {"student.token_level.embed_size": _EMBED_SIZE, "student.token_level.output_rank": _RANK}
    for size in scale.token_sizes:
        yield _architecture(TOKEN_LEVEL, "token-level", size, 1, {})
        yield _architecture(FACTORED, "token-level", size, 1, factored)


def _architecture(group: str, kind: Any, size: Size, k: int, changes: dict[str, Any], **more: Any) -> Model:
    objective = _OBJECTIVE if kind == "student" else None
    return Model(group, kind, "demo", size, 0, k, objective=objective, changes=changes, writes=False, **more)


def _lab(name: ScaleName, **more: Any) -> Scale:
    """A scale of the other experiments, but for the text and that there is no teacher: text teaches all models."""
    texts: dict[str, Any] = {"training_text": MIXTURE, "texts": (CHOICE, *HELD_OUT), "is_taught": False}
    return replace(SCALES[name], **texts, **more)


def _evaluation(sequences: int) -> dict[str, int]:
    return {"--sequences": sequences, "--brier-positions": 0, "--prompts": 0}


# Two CPU cores; the largest budget of one architecture takes an hour or more.
_CPU = WorthScale(
    lab=_lab(
        ScaleName.cpu,
        sequence_length=1024,
        batch_size=4,
        package_megabytes=120,
        evaluation=_evaluation(40),
    ),
    unit=262_144,
    budgets=(1, 4, 16, 64),
    factors=(0.5, 1.0, 2.0),
    chunk_sizes=(2, 4, 8),
    student_size=Size(4, 256),
    gru_widths=(256, 384),
    token_sizes=SCALES[ScaleName.cpu].token_sizes,
)
WORTH_SCALES: dict[ScaleName, WorthScale] = {
    # Minutes: shows that every stage works, measures nothing worth knowing.
    ScaleName.smoke: WorthScale(
        lab=_lab(
            ScaleName.smoke,
            mixture_megabytes=1.5,
            batch_size=2,
            learning_rate=0.008,
            evaluation=_evaluation(3),
        ),
        unit=4_096,
        budgets=(1, 2),
        factors=(1.0, 2.0),
        chunk_sizes=(8,),
        student_size=Size(2, 64),
        gru_widths=(32,),
        token_sizes=(Size(1, 64),),
    ),
    ScaleName.cpu: _CPU,
    # The same models on more text.
    ScaleName.gpu: replace(
        _CPU,
        lab=_lab(
            ScaleName.gpu,
            sequence_length=1024,
            batch_size=16,
            package_megabytes=175,
            autoencoder_steps=1000,
            evaluation=_evaluation(100),
        ),
        unit=1_638_400,
    ),
}

"""What is trained: models as data."""

from dataclasses import dataclass, field
from typing import Any, Literal

Vocabulary = Literal["demo", "large"]
Kind = Literal["student", "token-level"]
DECODER = "student.model.chunk_decoder."
# The group of models whose backbone is so large that its steps are most of the time.
FAST = "fast"


@dataclass(frozen=True)
class Size:
    """A backbone: layers × width, heads of 64 dimensions; without layers there is none, and the width is a GRU's."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    def values(self) -> dict[str, Any]:
        """A recipe's values."""
        heads = max(1, self.width // 64)
        return {
            "student.model.num_layers": self.layers,
            "student.model.hidden_size": self.width,
            "student.model.num_heads": heads,
            "student.model.num_kv_heads": 1 if heads % 2 else heads // 2,
            "student.model.intermediate_size": 3 * self.width,
        }


@dataclass(frozen=True)
class AutoencoderPlan:
    """One autoencoder.

    Attributes:
        vocabulary: whose tokens it takes.
        k: tokens per chunk.
        latent_size: D; None takes CALM's 32·K.
        hidden_size: width of a token inside it, so of the rows of logits too; None takes 64, or 32 at the large
            vocabulary, where the rows are much of what a token costs.
        times: how many times as many steps as the scale has.
        steps: how many it has whatever the scale; None takes ``times``.
        token_dropout: share of its input tokens that it does not see; None takes the recipe's.
        text_tokens: of the training text, how many it learns from: those that a student of its seed reads first; None
            takes all.
        seed: of weights, order and noise.
        equal_codes: whether its tokens start with codes of equal length.
    """

    vocabulary: Vocabulary
    k: int
    latent_size: int | None = None
    hidden_size: int | None = None
    times: int = 1
    token_dropout: float | None = None
    text_tokens: int | None = None
    seed: int = 0
    equal_codes: bool = False
    steps: int | None = None

    @property
    def d(self) -> int:
        """``latent_size``, or what stands for None."""
        return self.latent_size or 32 * self.k

    @property
    def width(self) -> int:
        """``hidden_size``, or what stands for None."""
        return self.hidden_size or (32 if self.vocabulary == "large" else 64)

    @property
    def run(self) -> str:
        """The name of its run."""
        longer = "" if self.times == 1 else f"-x{self.times}"
        fixed = "" if self.steps is None else f"-{self.steps}-steps"
        denoising = "" if self.token_dropout is None else f"-drop{self.token_dropout:g}"
        text = "" if self.text_tokens is None else f"-text{self.text_tokens}"
        codes = "-codes" if self.equal_codes else ""
        seed = f"-s{self.seed}" if self.seed else ""
        name = f"{self.vocabulary}-autoencoder-k{self.k}-d{self.d}-w{self.width}"
        return f"{name}{longer}{fixed}{denoising}{text}{codes}{seed}"


def denoising_autoencoder(
    vocabulary: Vocabulary, k: int, *, text_tokens: int | None = None, seed: int = 0
) -> AutoencoderPlan:
    """One that learns three times as long, with half of its tokens hidden: its token embeddings are good output tables.

    Args:
        vocabulary, k, text_tokens, seed: as in :class:`AutoencoderPlan`.
    """
    return AutoencoderPlan(vocabulary, k, times=3, token_dropout=0.5, text_tokens=text_tokens, seed=seed)


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
        induction: whether it has an induction head, where its objective can have one.
        backbone_of: the run of the token-level student whose backbone it starts from.
        autoencoder: of a latent student; None takes the one that its vocabulary and K have by default.
        writes: whether what it writes is evaluated, besides its likelihood and its drafts.
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
    induction: bool = True
    backbone_of: str | None = None
    autoencoder: AutoencoderPlan | None = None
    writes: bool = True

    @property
    def run(self) -> str:
        """The name of its run."""
        what = "token" if self.kind == "token-level" else f"k{self.k}"
        return f"{self.vocabulary}-{self.group}-{what}-{self.size}-s{self.seed}"

    @property
    def autoencoder_plan(self) -> AutoencoderPlan:
        """``autoencoder``, or what stands for None."""
        return self.autoencoder or AutoencoderPlan(self.vocabulary, self.k)

"""One model of an experiment with what was measured of it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.plan import AutoencoderPlan, Model, Size
from experiments.speed import Speed
from latentforge.core.results import Result, ResultsFile

# Not those of single positions in the chunk.
_BOUND = re.compile(r"nats_per_token_bound_n\d+")


@dataclass(frozen=True)
class Measured:
    """One model with what was measured of it.

    Attributes:
        model: it.
        evaluations: results by id, by held-out text.
        speed: None where it was not timed.
        autoencoder_flops: floating-point operations of all of its autoencoder's training; 0 of a token-level student.
    """

    model: Model
    evaluations: dict[str, dict[str, Result]]
    speed: Speed | None = None
    autoencoder_flops: float = 0.0

    def value(self, name: str, held_out: str = "stdlib") -> float | None:
        """A figure of its evaluation; None where it has none."""
        result = self.evaluations[held_out].get(name)
        return None if result is None else result.value

    @property
    def nats(self) -> float:
        """Held-out nats/token, of the tightest bound where there is no exact likelihood."""
        results = self.evaluations["stdlib"]
        exact = results.get("nats_per_token")
        found = [exact] if exact else [result for name, result in results.items() if _BOUND.fullmatch(name)]
        return min(result.value for result in found if result.value is not None)

    @property
    def training_flops(self) -> float | None:
        """Floating-point operations of all of its training, its autoencoder's too; None where it was not timed."""
        return self.speed.training_flops * self.model.tokens + self.autoencoder_flops if self.speed else None

    def record(self) -> dict[str, Any]:
        """Everything, for the results file."""
        about = asdict(self.model) | {"run": self.model.run, "size": str(self.model.size)}
        speed = {"speed": asdict(self.speed) if self.speed else None, "autoencoder_flops": self.autoencoder_flops}
        evaluations = {
            text: {name: result.model_dump() for name, result in results.items()}
            for text, results in self.evaluations.items()
        }
        return about | {"evaluations": evaluations} | speed


def model_of(record: Mapping[str, Any]) -> Measured:
    """What :meth:`Measured.record` wrote of a model."""
    layers, width = record["size"].split("x")
    speed, autoencoder = record["speed"], record["autoencoder"]
    about = ("group", "kind", "vocabulary", "tokens", "k", "objective", "seed", "changes", "induction", "backbone_of")
    model = Model(
        **{name: record[name] for name in about},
        size=Size(int(layers), int(width)),
        autoencoder=autoencoder and AutoencoderPlan(**autoencoder),
    )
    timed = speed and Speed(**speed | {name: tuple(speed[name]) for name in ("one", "many")})
    evaluations = {
        text: {name: Result.model_validate(result) for name, result in results.items()}
        for text, results in record["evaluations"].items()
    }
    return Measured(model, evaluations, timed, record["autoencoder_flops"])


def read_evaluation(folder: Path) -> dict[str, Result]:
    """The newest evaluation in a folder, its results by id.

    Raises:
        ResultsError: it is not a results file of this version.
    """
    newest = max(folder.glob("eval_*.json"))
    return ResultsFile.read(newest).by_id

"""What was measured of one architecture at one budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from experiments.measured import Measured, model_of
from experiments.worth_plan import name_of
from latentforge.core.results import Result


@dataclass(frozen=True)
class WorthRun:
    """One architecture at one budget.

    Attributes:
        measured: the run; its speed is the architecture's, which is timed once.
        group: of the architecture.
        budget: in units of the scale.
        rate: the learning rate that was chosen for it.
        tried: nats/token at each rate, of the trial budget and the text that is there for it.
        seconds: of its training.
    """

    measured: Measured
    group: str
    budget: int
    rate: float
    tried: Mapping[str, float]
    seconds: float

    @property
    def architecture(self) -> str:
        """Its name, the same at all budgets."""
        return name_of(self.group, self.measured.model)

    @property
    def size(self) -> str:
        """Of its backbone."""
        return str(self.measured.model.size)

    @property
    def tokens_per_s(self) -> float | None:
        """Of one request, the best round: what else the machine does can only take from it; None where untimed."""
        speed = self.measured.speed
        return None if speed is None else max(speed.one)

    def figure(self, name: str, text: str) -> Result | None:
        """A figure of its evaluation on a reported text, with its interval; None where it has none."""
        return self.measured.evaluations[text].get(name)

    def nats(self, text: str) -> float:
        """Nats/token on a reported text."""
        value = self.measured.value("nats_per_token", text)
        assert value is not None
        return value

    def record(self) -> dict[str, Any]:
        """Everything, for the results file."""
        about = {name: getattr(self, name) for name in ("architecture", "budget", "rate", "seconds")}
        return self.measured.record() | about | {"architecture_group": self.group, "tried": dict(self.tried)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What :meth:`record` wrote."""
        about = {name: record[name] for name in ("budget", "rate", "tried", "seconds")}
        return cls(model_of(record), record["architecture_group"], **about)

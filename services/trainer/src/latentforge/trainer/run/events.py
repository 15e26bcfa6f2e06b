"""What happens in a stage, as everybody who watches is told it: one event, and what takes events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from latentforge.core.manifest import TextSample

EventKind = Literal["started", "train", "held_out", "published"]


@dataclass(frozen=True)
class StagePace:
    """How fast a stage is.

    Attributes:
        tokens: of the newest step.
        mean: tokens per second since the process began the stage.
        recent: tokens per second over the newest steps, validations between them included.
        eta: seconds left in the stage.
        run_eta: seconds left in the whole run; None while unknown.
        teacher_wait: seconds for which the teacher was waited for since the step before; None without one.
    """

    tokens: int
    mean: float
    recent: float
    eta: float
    run_eta: float | None
    teacher_wait: float | None

    @property
    def figures(self) -> dict[str, float]:
        """What is kept of it with a step's figures."""
        waited = {} if self.teacher_wait is None else {"teacher_wait_seconds": self.teacher_wait}
        return {"tok_per_s": self.mean, **waited}


@dataclass(frozen=True)
class Event:
    """One thing that happened in a stage.

    Attributes:
        kind: started (the process begins the stage, or resumes it), train (a step is done), held_out (a validation),
            published (a checkpoint).
        stage: its name.
        step: steps that are done.
        of: steps of the stage.
        figures: by name, of train and held_out.
        pace: of train.
        note: of train: some words, like the share of cache hits.
        place: of published: where.
        samples: of published: what the student writes by then.
    """

    kind: EventKind
    stage: str
    step: int
    of: int
    figures: Mapping[str, float] = field(default_factory=dict)
    pace: StagePace | None = None
    note: str = ""
    place: str = ""
    samples: tuple[TextSample, ...] = ()


class Sink(Protocol):
    """Shows or keeps events. What it cannot show it passes over; it must not end a run."""

    def take(self, event: Event) -> None: ...

    def close(self) -> None: ...

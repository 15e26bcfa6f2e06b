"""Where a run is, as its process knows it."""

from dataclasses import dataclass, field

from latentforge.trainer.run.curve import Point

STARTING = "starting"


@dataclass
class Status:
    """Where a run is; written by the run, read by whoever asks.

    Attributes:
        run: its name.
        stage: starting, data, autoencoder, student, token-level or finished.
        step, of: in the stage; tokens while data is packed.
        losses: the newest step's figures.
        held_out_figures: the newest of each name: not every validation measures all of them.
        eta: seconds left in the stage; None while unknown.
        run_eta: seconds left in the whole run; None while the time of a later stage is unknown.
        tokens_per_s: over the newest steps, validations between them included; None before the second step.
        teacher_wait_seconds: how long this process has waited for its teacher; None where it has none.
        waiting_for: what is waited for just now, for how long and at most how long; None while nothing is.
        teacher_rows: sequences and rows that the teacher gave, and how many of each were cached (see CacheCount);
            empty without one.
        tokens: that this process trained on, by stage.
        checkpoints_published: by this process.
        last_published: where the newest of them is.
        counts: incidents that the run got over, by kind; see :meth:`count`.
        train, held_out: the stage's curves, a bounded number of points with ``step`` and figures by name.
        done: the run is finished.
        error: why it failed, or None.
    """

    run: str
    stage: str = STARTING
    step: int = 0
    of: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    held_out_figures: dict[str, float] = field(default_factory=dict)
    eta: float | None = None
    run_eta: float | None = None
    tokens_per_s: float | None = None
    teacher_wait_seconds: float | None = None
    waiting_for: str | None = None
    teacher_rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    checkpoints_published: int = 0
    last_published: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    train: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    done: bool = False
    error: str | None = None

    def count(self, kind: str, number: int = 1) -> None:
        """Counts incidents of a kind, like ``rewinds``: seen in the status, and as trainer_incidents_total."""
        self.counts[kind] = self.counts.get(kind, 0) + number

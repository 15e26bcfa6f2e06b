"""What a run leaves behind for others to read: one model per JSON file, without torch.

``runs/<run>/summary.json`` is a :class:`RunSummary`, ``autoencoder/evaluation.json`` an :class:`AutoencoderResult`,
``student.json`` and ``token-level.json`` are a :class:`StudentResult`, and each line of ``metrics.jsonl`` is a
:class:`ProgressPoint`. ``status.json`` is a :class:`LiveStatus`. What does not apply to a run is left out of
its file and None in the model.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.core.files import write_atomically
from latentforge.core.manifest import TeacherId
from latentforge.core.results import ResultsFile
from latentforge.trainer.errors import TrainerError

SUMMARY = "summary.json"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"
STATUS = "status.json"

TargetKind = Literal["score", "generate", "text"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunFile(_Part):
    """A JSON file of a run; a file of another version is refused, not guessed at."""

    format_version: Literal[1] = 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file that :meth:`write` wrote.

        Raises:
            TrainerError: it is missing, or not a file of this version; names it and what is wrong.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainerError(f"{path} cannot be read ({error.strerror}); the run is not that far") from None
        except ValidationError as error:
            said = "; ".join(describe_errors(error))
            raise TrainerError(
                f"{path} is not a {cls.__name__} of this version: {said}; start the run anew with --fresh or --run NAME"
            ) from None

    def write(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        values = self.model_dump(mode="json", exclude_none=True)
        write_atomically(path, json.dumps(values, indent=1) + "\n")


class CurvePoint(_Part):
    """A student's figures on held-out data after ``step`` steps.

    Attributes:
        ce, kd: nats per token.
        mse: per dimension of a latent.
        acceptance, acceptance_low, mean_accepted, mean_accepted_low: see ``training.validation.acceptance_figures``;
            acceptance_k0 … are beside them.
        greedy_agreement, greedy_accepted: see ``training.validation.greedy_figures``.
        worth_backbone, worth_latent, worth_copy, worth_window: nats that a token costs more without the part, of steps
            that are published; see ``model.ablation``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    step: int
    ce: float
    kd: float | None = None
    mse: float | None = None
    acceptance: float | None = None
    acceptance_low: float | None = None
    mean_accepted: float | None = None
    mean_accepted_low: float | None = None
    greedy_agreement: float | None = None
    greedy_accepted: float | None = None
    worth_backbone: float | None = None
    worth_latent: float | None = None
    worth_copy: float | None = None
    worth_window: float | None = None

    @property
    def has_worth(self) -> bool:
        """Whether it is known what the parts are worth."""
        worth = (self.worth_backbone, self.worth_latent, self.worth_copy, self.worth_window)
        return any(value is not None for value in worth)


class ReconstructionFigures(_Part):
    """Shares of held-out tokens and chunks that come back exactly: from the posterior's mean, and from a sample."""

    token_exact: float
    chunk_exact: float
    token_exact_noisy: float
    chunk_exact_noisy: float


class AutoencoderFigures(ReconstructionFigures):
    """What a summary says of an autoencoder: K, D, reconstruction, and where the run itself trained it the last step's
    cross-entropy, and the reconstruction of the same chunks before the first step."""

    k: int
    d: int
    loss: float | None = None
    untrained: ReconstructionFigures | None = None


class SkippedData(_Part):
    """Data that nothing was learnt from, since the loss broke down.

    Attributes:
        step: of the training, that the run went back to.
        first, last: steps of the data, both skipped.
        reason: what was wrong.
    """

    step: int
    first: int
    last: int
    reason: str


class AutoencoderResult(AutoencoderFigures, RunFile):
    """A finished autoencoder; ``chunks`` is how many held-out ones its figures are of, ``skipped`` what it did not
    learn from."""

    steps: int
    seconds: float
    chunks: int
    skipped: list[SkippedData] = []


class TeacherFigures(TeacherId):
    """The teacher, its tokenizer's fingerprint, and its own nats per held-out token."""

    fingerprint: str
    held_out_nll: float


class CacheFigures(_Part):
    """Sequences and rows that a run asked for, how many came from the gateway's cache, and that cache's own counts.

    Attributes:
        failed: sequences that were trained without rows, because the teacher fails on them for good.
    """

    hits: int
    misses: int
    rows: int
    rows_from_cache: int
    failed: int = 0
    bytes: int
    saved_seconds: float


class KeptFigures(_Part):
    """Sequences that a run looked for among kept rows.

    Attributes:
        sequences, found: how many, and how many of them have rows there.
        rows: of those.
        failed: sequences that the teacher failed on for good.
    """

    sequences: int
    found: int
    rows: int
    failed: int = 0


class GeneratedFigures(_Part):
    """What the teacher wrote for a student to learn from."""

    prompts: int
    continuations: int
    dropped: int
    tokens: int
    held_out_continuations: int
    continuations_per_step: int


class SettingsChange(_Part):
    """What a stage was resumed with instead of what it had, by dotted name: the old value and the new one.

    Attributes:
        step: from which step on.
        time: ISO 8601 in UTC.
    """

    step: int
    time: str
    changed: dict[str, tuple[Any, Any]]


class TargetFigures(_Part):
    """What a student learnt from and how it fared.

    Attributes:
        curve: held-out figures from step 0 to the last.
        unigram_ce: cross-entropy of held-out tokens under the training text's token frequencies.
        held_out_tokens: that the figures are over.
        targets: score, generate or text.
        teacher: None without one.
        cache: of targets that were scored.
        kept: of targets that were scored before.
        generated: of targets that were generated.
        checkpoints: where the student was published, oldest first.
        history: settings of the student that were changed under way, oldest first.
        skipped: data that the student skipped, oldest first.
    """

    curve: list[CurvePoint]
    unigram_ce: float
    held_out_tokens: int
    targets: TargetKind
    teacher: TeacherFigures | None = None
    cache: CacheFigures | None = None
    kept: KeptFigures | None = None
    generated: GeneratedFigures | None = None
    checkpoints: list[str]
    history: list[SettingsChange] = []
    skipped: list[SkippedData] = []


class StudentResult(TargetFigures, RunFile):
    """A finished student, of either kind.

    Attributes:
        steps, tokens, seconds: that it took, validations and waiting included, whatever the number of processes.
        teacher_wait_seconds: of those it waited for its teacher; None without one.
    """

    steps: int
    tokens: int
    seconds: float
    teacher_wait_seconds: float | None = None


class StudentFigures(_Part):
    """What a summary says of a student: steps, tokens and time that it took, and both ends of its curve."""

    steps: int
    tokens: int
    kd_first: float | None = None
    kd_last: float | None = None
    ce_first: float
    ce_last: float
    mse_first: float | None = None
    mse_last: float | None = None
    acceptance_first: float | None = None
    acceptance_last: float | None = None
    seconds: float
    tokens_per_s: float | None = None
    teacher_wait_seconds: float | None = None


class StageSeconds(_Part):
    """How long each stage of a run took."""

    data: float
    autoencoder: float
    student: float


class RunSummary(TargetFigures, RunFile):
    """A finished run: the recipe as it was resolved, and the figures of every stage."""

    run: str
    recipe: dict[str, Any]
    seconds: StageSeconds
    ae: AutoencoderFigures
    student: StudentFigures


class EvaluatedModel(_Part):
    """Which model an evaluation is of; ``parameters`` is None of a teacher."""

    id: str
    kind: str
    chunk_size: int
    parameters: int | None
    tokenizer_fingerprint: str


class EvaluationData(_Part):
    """What an evaluation was made on; ``tokens`` is how many the likelihood is over."""

    folder: str
    source: str
    source_sha256: str
    split: str
    sequence_length: int
    tokens: int


class Evaluation(ResultsFile):
    """``eval_<time>.json``: what ``trainer evaluate`` measured.

    Attributes:
        teacher: the teacher's name; None without one.
        teacher_tokenizer_fingerprint: of that teacher.
        options: how much was looked at.
    """

    checkpoint: EvaluatedModel
    teacher: str | None
    teacher_tokenizer_fingerprint: str | None
    data: EvaluationData
    options: dict[str, int]


class LiveStatus(RunFile):
    """Where a run is, as its process wrote some seconds ago, or as it left it.

    Attributes:
        run: its name.
        host, pid: of the process.
        time: when this was written, in seconds since the epoch.
        stage, step, of: where it was; the last stage is ``finished``.
        losses: of the newest step.
        held_out_figures: the newest of each name.
        eta, run_eta: seconds left in the stage, and in the whole run.
        tokens_per_s: over the newest steps.
        tokens: that the process trained on, by stage.
        teacher_wait_seconds: for which the process waited for its teacher; None without one.
        waiting_for: what it waited for; None where it did not.
        checkpoints_published: by the process.
        last_published: where the newest of them is.
        counts: incidents that it got over, by kind.
        done: the run is finished.
        error: why it failed or stopped, or None.
    """

    run: str
    host: str
    pid: int
    time: float
    stage: str
    step: int
    of: int
    losses: dict[str, FiniteFloat]
    held_out_figures: dict[str, FiniteFloat]
    eta: float | None = None
    run_eta: float | None = None
    tokens_per_s: float | None = None
    tokens: dict[str, int]
    teacher_wait_seconds: float | None = None
    waiting_for: str | None = None
    checkpoints_published: int
    last_published: str | None = None
    counts: dict[str, int]
    done: bool
    error: str | None = None


class ProgressPoint(BaseModel):
    """One line of ``metrics.jsonl``: figures by name of a training step, or of held-out data after that step."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, float]

    stage: str
    step: int
    kind: Literal["train", "held_out"]
    time: float

    @property
    def figures(self) -> dict[str, float]:
        return self.__pydantic_extra__


def read_progress(run_folder: Path) -> list[ProgressPoint]:
    """The lines of a run's ``metrics.jsonl``; steps that were done again after a kill are there twice.

    Lines that a kill, or a full disk, cut in the middle are passed over.

    Raises:
        TrainerError: it is missing, or cannot be read.
    """
    path = run_folder / METRICS
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TrainerError(f"{path} cannot be read ({error.strerror}); the run is not that far") from None
    points = []
    for line in lines:
        with suppress(ValidationError):
            points.append(ProgressPoint.model_validate_json(line))
    return points

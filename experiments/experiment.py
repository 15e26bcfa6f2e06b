"""One experiment from text to figures; what is done is not done again."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments import commands
from experiments.commands import CommandJob, Places
from experiments.fresh import fresh_model
from experiments.jobs import run_jobs
from experiments.measured import Measured, read_evaluation
from experiments.mixture import CHOICE, MIXTURE, write_mixture
from experiments.operations import autoencoder_flops
from experiments.plan import AutoencoderPlan, Model, Vocabulary
from experiments.scales import HELD_OUT, SCALES, Scale, ScaleName
from experiments.speed import AnyModel, Speed, load_model, measure_speed
from latentforge.core.files import replacing
from latentforge.model.latent_model import LatentModel
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.results import EVALUATION, AutoencoderResult, read_progress
from tools.processes import Children, stop_on_signals


class Experiment:
    """One scale's data and models in one folder.

    Args:
        name: of the scale.
        folder: where everything is kept; None takes ``runs/<kind>-<name>``.
        at_once: how many jobs run side by side.
        console: for progress.
        kind: what kind of experiment.
        scale: of that kind; None takes the one of :data:`SCALES`.
    """

    def __init__(
        self,
        name: ScaleName,
        folder: Path | None,
        at_once: int,
        console: Console,
        *,
        kind: str = "experiments",
        scale: Scale | None = None,
    ) -> None:
        self.scale: Scale = scale or SCALES[name]
        self.places = Places(folder or Path("runs") / f"{kind}-{name}")
        self.at_once, self.console = at_once, console
        self.environment = {
            "RUNS_DIR": str(self.places.runs),
            # Not where inference looks.
            "CHECKPOINTS_DIR": str(self.places.checkpoints),
            "TRAINER_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def make(self, models: Sequence[Model], texts: Sequence[str] = HELD_OUT) -> None:
        """Data, autoencoders, students and their evaluations on some texts, as far as they are not there."""
        with stop_on_signals(), Children(self.places.root / "logs", env=self.environment) as children:
            for vocabulary in self._make_data(children, {m.vocabulary for m in models}):
                self._make_vocabulary(children, vocabulary, [m for m in models if m.vocabulary == vocabulary], texts)

    def make_autoencoders(self, plans: Sequence[AutoencoderPlan]) -> None:
        """Data and autoencoders alone, as far as they are not there."""
        with stop_on_signals(), Children(self.places.root / "logs", env=self.environment) as children:
            for vocabulary in self._make_data(children, {plan.vocabulary for plan in plans}):
                jobs = self._autoencoder_jobs(plan for plan in plans if plan.vocabulary == vocabulary)
                self._run(children, jobs, f"autoencoders, {vocabulary}")

    def run(self, jobs: Sequence[CommandJob], what: str) -> None:
        """Jobs besides those of :meth:`make`, as far as they are not done."""
        with stop_on_signals(), Children(self.places.root / "logs", env=self.environment) as children:
            self._run(children, jobs, what)

    def _make_data(self, children: Children, wanted: Collection[Vocabulary]) -> list[Vocabulary]:
        """Text, tokenizer and packed data of some vocabularies, which it returns in the scale's order."""
        places, scale = self.places, self.scale
        vocabularies = [v for v in scale.tokens if v in wanted]
        self._run(children, commands.text_jobs(places, scale), "text")
        if "large" in vocabularies:
            self._join_text()
            self._run(children, [commands.tokenizer_job(places, scale)], "tokenizer")
        if scale.training_text == MIXTURE:
            self._mix_text()
        for vocabulary in vocabularies:
            self._run(children, commands.packing_jobs(places, scale, vocabulary), f"packing, {vocabulary}")
        return vocabularies

    def _autoencoder_jobs(self, plans: Iterable[AutoencoderPlan]) -> list[CommandJob]:
        """The longest first."""
        return [
            commands.autoencoder_job(self.places, self.scale, plan)
            for plan in sorted(dict.fromkeys(plans), key=lambda p: -p.k * p.times)
        ]

    def _make_vocabulary(
        self, children: Children, vocabulary: Vocabulary, models: Sequence[Model], texts: Sequence[str]
    ) -> None:
        places, scale = self.places, self.scale
        autoencoders = self._autoencoder_jobs(m.autoencoder_plan for m in models if m.kind == "student")
        # The longest first, so that the last minutes are not one job's.
        models = sorted(models, key=lambda m: (-m.tokens, -m.size.layers * m.size.width**2))
        trained = {m: commands.student_job(places, scale, m) for m in models}
        token_level = [job for m, job in trained.items() if m.kind == "token-level"]
        # A student needs an autoencoder, and may start from a token-level one.
        self._run(children, token_level + autoencoders, f"token-level models and autoencoders, {vocabulary}")
        students = [job for m, job in trained.items() if m.kind == "student"]
        self._run(children, students, f"students, {vocabulary}")
        evaluations = [commands.evaluation_job(places, scale, m, text) for text in texts for m in models]
        self._run(children, evaluations, f"evaluations, {vocabulary}")

    def rates(self, models: Iterable[Model]) -> dict[str, float]:
        """How many tokens/s the runs of models learnt, by group: medians over their steps."""
        found: dict[str, float] = {}
        for model in models:
            points = read_progress(self.places.runs / model.run)
            found[model.group] = statistics.median(p.figures["tok_per_s"] for p in points if p.kind == "train")
        return found

    def autoencoder(self, plan: AutoencoderPlan) -> AutoencoderResult:
        """The evaluation of an autoencoder that was made."""
        return AutoencoderResult.read(self.places.autoencoder(plan) / EVALUATION)

    def measured(self, models: Sequence[Model], *, timed: bool) -> list[Measured]:
        """What came out; speeds of the models of the first seed."""
        speeds: dict[str, Speed] = {}
        flops: dict[Model, float] = {}
        if timed:
            trained = {m: load_model(self.places.trained(m)) for m in models if m.seed == 0}
            flops = {m: self._autoencoder_flops(m, of) for m, of in trained.items() if isinstance(of, LatentModel)}
            speeds = self._speeds(trained, self.scale.speed_repeats)
        return [
            Measured(
                m,
                {text: read_evaluation(self.places.evaluated(m, text)) for text in HELD_OUT},
                speeds.get(m.run),
                flops.get(m, 0.0),
            )
            for m in models
        ]

    def measured_fresh(self, models: Iterable[Model], repeats: int | None) -> list[Measured]:
        """Speeds alone, of models that have learnt nothing: weights do not change how long a token takes."""
        fresh = {m: fresh_model(self.scale, m) for m in models}
        speeds = self._speeds(fresh, repeats or self.scale.speed_repeats)
        return [Measured(m, {}, speeds[m.run]) for m in fresh]

    def _autoencoder_flops(self, model: Model, trained: LatentModel) -> float:
        """Of all the tokens that its autoencoder has learnt."""
        made = self.autoencoder(model.autoencoder_plan)
        chunks = made.steps * load_recipe(str(commands.RECIPE), commands.RECIPE.parent).autoencoder.optim.batch_size
        return autoencoder_flops(trained.autoencoder) * float(chunks * made.k)

    def _speeds(self, models: Mapping[Model, AnyModel], repeats: int) -> dict[str, Speed]:
        return measure_speed(
            {m.run: model for m, model in models.items()},
            {m.run: f"{m.vocabulary} {m.size}" for m in models},
            new_tokens=self.scale.speed_tokens,
            repeats=repeats,
            seed=0,
            console=self.console,
        )

    def _run(self, children: Children, jobs: Sequence[CommandJob], what: str) -> None:
        records = self.places.root / "commands"
        run_jobs(children, jobs, records=records, at_once=self.at_once, console=self.console, what=what)

    def _mix_text(self) -> None:
        """The packages and the library in one, less what is kept apart."""
        train, choice = (self.places.text(name) for name in (MIXTURE, CHOICE))
        if train.exists() and choice.exists():
            return
        megabytes = self.scale.mixture_megabytes
        sources = [self.places.text(name) for name in ("packages-train", "stdlib-train")]
        write_mixture(sources, train, choice, None if megabytes is None else int(megabytes * 1e6))

    def _join_text(self) -> None:
        """The large vocabulary's text: the standard library and the packages."""
        path = self.places.text("vocabulary")
        if path.exists():
            return
        with replacing(path) as temporary, temporary.open("wb") as file:
            for name in ("stdlib-train", "packages-train"):
                file.write(self.places.text(name).read_bytes())

"""The demo's one script: gateway and inference up, trainer beside them, proof, samples, benchmark, report."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.results import ResultsFile, commit, cpu_description
from latentforge.core.settings import load_settings
from latentforge.trainer.results import SUMMARY, RunSummary
from tools.demo.preflight import preflight
from tools.demo.report import DecodeFigures, DemoResult, Sample, report_table
from tools.demo.settings import TEACHER, DemoSettings, fresh_run_name
from tools.demo.watch import InferenceWatch, WatchError
from tools.gateway import GatewayChoice, gateway_answers, gateway_command
from tools.processes import Child, ChildError, Children

_START_SECONDS = 120.0
# Trainer and gateway save what they have before they go.
_STOP_SECONDS = 20.0
_FEWEST_CHECKPOINTS = 3
_SAMPLE_TOKENS = 48
_OF_OTHERS = ("GATEWAY_TARGET", "INFERENCE_TRAINER_STATUS_URL")


class Demo:
    """One run of the demo; :meth:`run` is read from top to bottom."""

    def __init__(self, settings: DemoSettings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.run_name = fresh_run_name(settings.recipe, datetime.now(UTC))
        self.logs = settings.demo_folder / "runs" / self.run_name / "logs"
        self.seconds: dict[str, float] = {}
        self._environment = {
            "GATEWAY_PORT": str(settings.gateway_port),
            "GATEWAY_TARGET": f"127.0.0.1:{settings.gateway_port}",
            "EMBEDDED_TEACHER_PATH": str(TEACHER),
            "TOKENIZER_PATH": str(TEACHER),
            "INFERENCE_PORT": str(settings.inference_port),
            "INFERENCE_TRAINER_STATUS_URL": f"http://127.0.0.1:{settings.status_port}",
            "CHECKPOINT_RUN": self.run_name,
            "CHECKPOINTS_DIR": "checkpoints",
            "RUNS_DIR": "runs",
            # Three services share the cores: one thread each, and a thread that waits must not spin.
            "TORCH_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def run(self) -> None:
        """Does the whole job.

        Raises:
            PreflightError: it cannot start.
            ChildError: a service died.
            WatchError: inference did not serve what was published.
            TimeoutError: a service did not come up.
        """
        settings, started = self.settings, time.monotonic()
        preflight(settings)
        with Children(self.logs, cwd=settings.demo_folder, env=self._environment, grace=_STOP_SECONDS) as children:
            with self._timed("start"):
                watch = self._start_services(children)
            summary = self._train(children, watch)
            with self._timed("generate"):
                samples = self._samples(watch)
            with self._timed("bench"):
                bench = self._bench(children)
            children.check()
            total = round(time.monotonic() - started, 2)
            self.seconds = {**summary.seconds.model_dump(), **self.seconds, "total": total}
            result = self._result(summary, watch, samples, bench)
        path = result.write(settings.demo_folder / "results")
        self.console.print(report_table(result))
        self._say(f"written to {path}; logs are in {self.logs}")
        if settings.serve:
            self._leave_serving(watch)

    def _start_services(self, children: Children) -> InferenceWatch:
        settings = self.settings
        self._say(f"run {self.run_name}: starting teacher-gateway and inference")
        children.start("teacher-gateway", gateway_command())
        children.start("inference", [_program("inference"), "serve"])
        watch = InferenceWatch(
            f"http://127.0.0.1:{settings.inference_port}", settings.demo_poll_seconds, settings.demo_seed
        )
        target = self._environment["GATEWAY_TARGET"]
        tls_ca = load_settings(GatewayChoice).gateway_tls_ca
        children.wait_until(
            lambda: gateway_answers(target, tls_ca), "starting the teacher-gateway", seconds=_START_SECONDS
        )
        children.wait_until(watch.is_up, "starting inference", seconds=_START_SECONDS)
        self._say(f"page at {watch.url}/, with the run's curves while it trains")
        return watch

    def _train(self, children: Children, watch: InferenceWatch) -> RunSummary:
        """Trains while inference is asked again and again; gives the trainer's summary."""
        settings = self.settings
        command = [_program("trainer"), "run", "--recipe", settings.recipe, "--run", self.run_name]
        command += ["--status-port", str(settings.status_port)]
        if settings.data is not None:
            command += ["--data", str(settings.data.resolve())]
        trainer = children.start("trainer", command, visible=True)
        while trainer.exit_code() is None:
            children.check(besides=trainer)
            self._poll(children, watch, trainer)
            time.sleep(0.1)
        children.finish(trainer)
        summary = self._summary()
        last = self._published()[-1]
        deadline = time.monotonic() + _START_SECONDS
        while watch.checkpoint != last:
            children.check()
            self._poll(children, watch, trainer)
            if time.monotonic() > deadline:
                raise WatchError(f"{last} is published, but inference still answers from {watch.checkpoint}")
            time.sleep(0.1)
        self._prove(watch)
        return summary

    def _poll(self, children: Children, watch: InferenceWatch, trainer: Child) -> None:
        try:
            swapped = watch.poll()
        except WatchError:
            # A dead server is better described by its own last words.
            time.sleep(0.5)
            children.check(besides=trainer)
            raise
        if swapped:
            self._say(f"inference now answers from {watch.checkpoint}")

    def _prove(self, watch: InferenceWatch) -> None:
        """Every published checkpoint has answered, in order, from one process that is still there."""
        published = self._published()
        if len(published) < _FEWEST_CHECKPOINTS:
            raise WatchError(f"{len(published)} checkpoints were published, at least {_FEWEST_CHECKPOINTS} must be")
        if watch.seen != published:
            raise WatchError(f"published: {', '.join(published)}; answers came from: {', '.join(watch.seen)}")

    def _published(self) -> list[str]:
        places = list_checkpoints(self.settings.demo_folder / "checkpoints" / self.run_name)
        if not places:
            raise WatchError(f"the trainer published nothing for {self.run_name}")
        return [read_manifest(place).id for place in places]

    def _summary(self) -> RunSummary:
        path = self.settings.demo_folder / "runs" / self.run_name / SUMMARY
        if not path.is_file():
            raise ChildError("the trainer was stopped before its run was done")
        return RunSummary.read(path)

    def _samples(self, watch: InferenceWatch) -> list[Sample]:
        prompts = [p for p in self.settings.prompts_file.read_text(encoding="utf-8").splitlines() if p.strip()]
        answers = [watch.generate(prompt, max_tokens=_SAMPLE_TOKENS, temperature=0.7, top_p=0.95) for prompt in prompts]
        return [Sample(prompt=p, text=a.text, checkpoint=a.checkpoint) for p, a in zip(prompts, answers, strict=True)]

    def _bench(self, children: Children) -> ResultsFile:
        results = self.settings.demo_folder / "results"
        before = set(results.glob("bench_*.json"))
        command = [_program("inference"), "bench", "--prompts-file", str(self.settings.prompts_file.resolve())]
        command += ["--repeats", str(self.settings.demo_bench_repeats)]
        bench = children.start("bench", command)
        children.finish(bench)
        (path,) = set(results.glob("bench_*.json")) - before
        return ResultsFile.read(path)

    def _result(
        self, summary: RunSummary, watch: InferenceWatch, samples: list[Sample], bench: ResultsFile
    ) -> DemoResult:
        of_the_run = summary.model_dump(include=summary.model_fields_set - {"format_version", "seconds"})
        return DemoResult(
            command=self.settings.command,
            commit=commit(),
            device=cpu_description(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=summary.recipe["seed"],
            **of_the_run,
            seconds=self.seconds,
            swaps=watch.swaps,
            decode=DecodeFigures.of(bench),
            samples=samples,
        )

    def _leave_serving(self, watch: InferenceWatch) -> None:
        """A server that outlives us: the one that was watched ended with the demo."""
        # Gateway and trainer are gone, and with them what the page shows of them.
        environment = {k: v for k, v in self._environment.items() if k not in _OF_OTHERS}
        with Children(self.logs, cwd=self.settings.demo_folder, env=environment) as children:
            server = children.start("inference-serve", [_program("inference"), "serve"], leashed=False)
            children.wait_until(watch.is_ready, "starting inference", seconds=_START_SECONDS)
            children.leave(server)
        self._say(f"inference stays up at {watch.url} (kill {server.pid} stops it); page at {watch.url}/; ask it:")
        body = json.dumps({"prompt": "def main():", "max_tokens": 64, "seed": 1})
        self._say(f"curl -s {watch.url}/generate -H 'content-type: application/json' -d '{body}'")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)


def _program(name: str) -> str:
    """A program of our own environment, whether that is activated or not."""
    return str(Path(sys.executable).with_name(name))

"""python -m benchmarks.drafter: all that is compared, in one run on one machine; exit code 0 whatever the figures."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.benchmark_results import asked_ids, command_line, machine, results_table
from benchmarks.drafter import methods
from benchmarks.drafter.apart import Apart
from benchmarks.drafter.engines import Method, VllmEngines
from benchmarks.drafter.measures import DrafterBench
from benchmarks.drafter.plan import QUICK, DrafterPlan
from benchmarks.drafter.prompts import prompt_ids, prompts
from benchmarks.drafter.report import BARS, IDS, NOTES, DrafterBenchResults
from benchmarks.drafter.run import Measurements, measure, needs_passes, num_figures
from benchmarks.gateway.servers import Dtype, MissingError, cpu_flags, fast_dtype
from benchmarks.progress import BenchProgress
from latentforge.core.command_line import WRONG_USAGE, errors_reported, fail
from latentforge.core.results import cpu_description
from latentforge.text.errors import TextError
from tools import suffix_env
from tools.processes import ChildError, StoppedError, stop_on_signals

_LOGS = Path("runs") / "logs" / "bench-drafter"
_DEFAULT = DrafterPlan()

app = typer.Typer(add_completion=False)


@app.command()
def main(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of a student's run that drafts, again and again; the bars are for the first."),
    ] = None,
    model: Annotated[Path, typer.Option(help="The teacher that vLLM serves.")] = Path("models/cache/smollm2"),
    only: Annotated[
        str | None, typer.Option(help=f"Ids of what is measured, separated by commas: {', '.join(IDS)}.")
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="Ways to draft beside: ngram, suffix, student_only and lookups_only (the first student's drafter with "
            "one of its sources), or none."
        ),
    ] = ",".join(methods.BASELINES),
    per_domain: Annotated[int, typer.Option(min=1, max=64, help="Prompts of each domain.")] = _DEFAULT.per_domain,
    single_per_domain: Annotated[
        int, typer.Option(min=1, max=64, help="Those that are asked again one at a time, for speed_1.")
    ] = _DEFAULT.single_per_domain,
    repeats: Annotated[int, typer.Option(min=1, help="Of speed_1.")] = _DEFAULT.repeats,
    new_tokens: Annotated[int, typer.Option(min=2, max=256, help="Tokens of a text.")] = _DEFAULT.new_tokens,
    least_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Where students' drafts end; 0 drafts all 8 tokens, unset as many as pay."),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Texts at T = 1 behind each prompt.")] = _DEFAULT.samples,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="What vLLM computes in; auto is bfloat16 where the processor has units for it."),
    ] = "auto",
    quick: Annotated[bool, typer.Option(help="A look whether it works: few prompts, one repeat.")] = False,
    results: Annotated[Path, typer.Option(help="Folder for bench_drafter_<time>.json.")] = Path("results"),
) -> None:
    """Measures the teacher alone, with drafts of its student, and with ngram and suffix drafting, all in vLLM.

    Needs .venv-vllm, the teacher (make smollm2) and about 4 GB of memory for each way to draft, since all engines are
    there at once.
    """
    plan = DrafterPlan(
        per_domain=per_domain,
        single_per_domain=min(single_per_domain, per_domain),
        repeats=repeats,
        new_tokens=new_tokens,
        samples=samples,
    )
    with errors_reported(ChildError, MissingError, OSError, TextError, TimeoutError, ValueError):
        students = _students(checkpoint or [])
        others = _baselines(baselines)
        wanted = list(IDS) if only is None else asked_ids(only, list(IDS), "this benchmark")
        if not (model / "tokenizer.json").is_file():
            raise MissingError(f"{model} is missing; make smollm2 makes it, or give --model")
        chosen = fast_dtype(cpu_flags()) if dtype == "auto" else dtype
        try:
            with stop_on_signals():
                chosen_plan = QUICK if quick else plan
                _run(chosen_plan, students, others, wanted, model, chosen, least_confidence, results)
        except StoppedError as stopped:
            typer.echo(f"bench-drafter: {stopped}; everything it started is stopped", err=True)
            raise typer.Exit(stopped.exit_code) from None


def _students(given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for one in given:
        name, _, folder = one.partition("=")
        if not name.isidentifier() or not folder or name in {*found, *methods.BASELINES, "alone", "fixed"}:
            wanted = "NAME=FOLDER with a name of its own, such as student=checkpoints/run"
            fail(f"--checkpoint {one!r} is not {wanted}", code=WRONG_USAGE)
        found[name] = Path(folder)
    return found


def _baselines(given: str) -> list[str]:
    asked = [name.strip() for name in given.split(",") if name.strip() and name.strip() != "none"]
    if unknown := [name for name in asked if name not in methods.BASELINES]:
        fail(f"--baselines names {unknown[0]!r}; there are {', '.join(methods.BASELINES)}", code=WRONG_USAGE)
    return asked


def _run(
    plan: DrafterPlan,
    students: dict[str, Path],
    others: Sequence[str],
    wanted: Sequence[str],
    model: Path,
    dtype: Dtype,
    least: float | None,
    results: Path,
) -> None:
    started, before = time.monotonic(), machine()
    asked = prompts(plan.per_domain)
    ids = prompt_ids(asked, model)
    notes: list[str] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-drafter-")))
        empty = scratch / "empty"
        empty.mkdir()
        ways = [methods.student(name, folder, plan, empty, least) for name, folder in students.items()]
        for name, source in methods.SOURCES.items():
            if name in others and students:
                first = next(iter(students.values()))
                ways.append(methods.student(name, first, plan, empty, least, drafts_from=source))
        ways += _lookups(others, plan, notes)
        progress = stack.enter_context(BenchProgress(num_figures(plan, len(ways), len(students), wanted)))
        apart = Apart(plan, ids, model, dtype, _LOGS, scratch, progress)
        passes_ms = apart.passes_ms() if needs_passes(wanted) else {}
        swapped = apart.swapped(next(iter(students.values()))) if "swaps" in wanted and students else None
        engines = VllmEngines(stack, model, dtype, plan, _LOGS, scratch)
        running = {}
        for method in (methods.ALONE, *ways):
            progress.begin(f"starting vLLM: {method.name}")
            running[method.name] = engines.start(method)
        bench = DrafterBench(plan=plan, prompts=asked, ids=ids, dtype=dtype, engines=running, report=progress)
        found = measure(bench, wanted, list(students), passes_ms, swapped)
        version = running[methods.ALONE.name].version
    setting = _setting(model, dtype, version, [methods.ALONE, *ways], students) | {"least_confidence": least}
    _report(plan, found, notes, before, results, started, setting)


def _lookups(names: Sequence[str], plan: DrafterPlan, notes: list[str]) -> list[Method]:
    found = [way for way in methods.lookups(plan) if way.name in names]
    if "suffix" in names and not suffix_env.is_ready():
        notes.append(f"suffix: not measured, {suffix_env.FOLDER.name} is missing; run python -m tools.suffix_env")
    return found


def _setting(
    model: Path, dtype: Dtype, version: str, ways: Sequence[Method], students: dict[str, Path]
) -> dict[str, Any]:
    return {
        "model": str(model),
        "dtype": dtype,
        "vllm": version,
        "methods": {way.name: way.speculative for way in ways},
        "checkpoints": {name: str(folder) for name, folder in students.items()},
    }


def _report(
    plan: DrafterPlan,
    found: Measurements,
    notes: Sequence[str],
    before: dict[str, Any],
    results: Path,
    started: float,
    setting: dict[str, Any],
) -> None:
    title = f"{plan.per_domain} prompts a domain, {plan.new_tokens} tokens, vLLM in {setting['dtype']}"
    said = [*notes, *found.notes, *NOTES]
    DrafterBenchResults(
        name="bench_drafter",
        command=command_line("benchmarks.drafter"),
        device=cpu_description(),
        seed=0,
        results=tuple(found.results),
        plan=asdict(plan),
        setting=setting,
        bars=dict(BARS.figures),
        measured=found.measured,
        notes=said,
        machine=before,
        seconds=round(time.monotonic() - started, 1),
    ).show(results, results_table(found.results, BARS, title, said))


if __name__ == "__main__":
    app()

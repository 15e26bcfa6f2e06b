"""python -m benchmarks.drafter.learning: is a student that has learnt a new domain accepted more there?

Both checkpoints draft whole drafts for the same texts of the teacher, behind prompts that neither was trained on.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.benchmark_results import command_line, machine, results_table
from benchmarks.drafter import methods
from benchmarks.drafter.engines import VllmEngine, VllmEngines, WrittenTexts
from benchmarks.drafter.passes import DraftAcceptance, acceptance
from benchmarks.drafter.plan import DrafterPlan
from benchmarks.drafter.report import BARS, DrafterBenchResults
from benchmarks.gateway.servers import MissingError, cpu_flags, fast_dtype
from benchmarks.progress import BenchProgress
from latentforge.core.command_line import errors_reported
from latentforge.core.results import Result, cpu_description
from latentforge.text.errors import TextError
from latentforge.text.text_source import read_documents
from latentforge.text.tokenizer import TextTokenizer
from tools.processes import ChildError, StoppedError, stop_on_signals

_LOGS = Path("runs") / "logs" / "bench-drafter-learning"
_PLAN = DrafterPlan()
_NOTES = (
    "learning: tokens per pass of the teacher, bonus included, greedy, whole drafts of 8, of the checkpoint that has",
    "  learnt over the one before; low and high bound the groups of 8 prompts. mean_accepted_NAME is of a lookup.",
)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    before: Annotated[Path, typer.Option(help="The run's folder of the student that has not learnt.")],
    after: Annotated[Path, typer.Option(help="That of the one that has.")],
    prompts: Annotated[Path, typer.Option(help="JSONL of texts or chats, of what the second one learnt, held out.")],
    model: Annotated[Path, typer.Option(help="The teacher that vLLM serves.")] = Path("models/cache/smollm2"),
    num: Annotated[int, typer.Option(min=1, help="Prompts at most, the first ones.")] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, max=256, help="Tokens of a text at most; chats are asked whole.")
    ] = 160,
    new_tokens: Annotated[int, typer.Option(min=2, max=256, help="Tokens of a text.")] = _PLAN.new_tokens,
    results: Annotated[Path, typer.Option(help="Folder for bench_drafter_<time>.json.")] = Path("results"),
) -> None:
    """Measures what a pass of the teacher gives in one domain with either student's drafts, and with lookups.

    Needs .venv-vllm and the teacher (make smollm2); suffix lookup is measured where .venv-suffix is.
    """
    plan = replace(_PLAN, new_tokens=new_tokens)
    with errors_reported(ChildError, MissingError, OSError, TextError, TimeoutError, ValueError):
        ids = _prompt_ids(prompts, model, num, prompt_tokens)
        try:
            with stop_on_signals():
                _run(plan, before, after, ids, model, results)
        except StoppedError as stopped:
            typer.echo(f"bench-drafter: {stopped}; everything it started is stopped", err=True)
            raise typer.Exit(stopped.exit_code) from None


def _prompt_ids(path: Path, model: Path, num: int, most: int) -> list[list[int]]:
    """The beginnings; raises ValueError where the file has none."""
    if not (model / "tokenizer.json").is_file():
        raise MissingError(f"{model} is missing; make smollm2 makes it, or give --model")
    tokenizer = TextTokenizer(model)
    found = [
        tokenizer.encode(document.text)[:most]
        if document.text is not None
        # A chat must be whole, or the teacher would not answer it.
        else tokenizer.encode_chat(document.messages or [], to_answer=True)
        for document in islice(read_documents(path), num)
    ]
    if not found:
        raise ValueError(f"--prompts {path} has no text; give JSONL as trainer collect --data takes it")
    return found


def _run(
    plan: DrafterPlan, before: Path, after: Path, ids: Sequence[Sequence[int]], model: Path, results: Path
) -> None:
    started, state, dtype = time.monotonic(), machine(), fast_dtype(cpu_flags())
    groups = [ids[start : start + plan.at_once] for start in range(0, len(ids), plan.at_once)]
    written: dict[str, list[WrittenTexts]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-learning-")))
        sides = {"before": before, "after": after}
        empty = scratch / "empty"
        empty.mkdir()
        # Of lookups both sides would have as much.
        ways = [
            methods.student(name, folder, plan, empty, 0.0, drafts_from="student") for name, folder in sides.items()
        ]
        ways += methods.lookups(plan)
        progress = stack.enter_context(BenchProgress(len(ways) * len(groups)))
        # One after the other, so that one engine's memory is enough.
        for way in ways:
            with ExitStack() as running:
                progress.begin(f"starting vLLM: {way.name}")
                engine = VllmEngines(running, model, dtype, plan, _LOGS, scratch).start(way)
                written[way.name] = _written(engine, groups, plan, progress)
                version = engine.version
    of = {name: _acceptance(texts, plan) for name, texts in written.items()}
    same = sum(len({str(one.token_ids) for one in group}) == 1 for group in zip(*written.values(), strict=True))
    found = [learnt(written, plan)]
    found += [
        Result(id=f"mean_accepted_{name}", value=accepted.tokens_per_pass, unit="tokens/pass")
        for name, accepted in of.items()
        if name not in sides
    ]
    said = [*_NOTES, f"in {same} of {len(groups)} groups all texts are the same"]
    DrafterBenchResults(
        name="bench_drafter",
        command=command_line("benchmarks.drafter.learning"),
        device=cpu_description(),
        seed=0,
        results=tuple(found),
        plan=asdict(plan),
        setting={
            "model": str(model),
            "dtype": dtype,
            "vllm": version,
            "checkpoints": {name: str(folder) for name, folder in sides.items()},
            "prompts": len(ids),
        },
        bars={"learning": BARS.figures["learning"]},
        measured={name: asdict(one) | {"by_position": one.by_position} for name, one in of.items()},
        notes=said,
        machine=state,
        seconds=round(time.monotonic() - started, 1),
    ).show(results, results_table(found, BARS, f"{len(ids)} prompts, vLLM in {dtype}", said))


def _written(
    engine: VllmEngine, groups: Sequence[Sequence[Sequence[int]]], plan: DrafterPlan, progress: BenchProgress
) -> list[WrittenTexts]:
    found = []
    for group in groups:
        found.append(engine.write(group, plan.new_tokens))
        per_pass = _acceptance(found[-1:], plan).tokens_per_pass
        progress.figure(f"{len(group)} at once, {engine.method.name}: {per_pass:.2f} tokens a pass")
    return found


def _acceptance(written: Sequence[WrittenTexts], plan: DrafterPlan) -> DraftAcceptance:
    passes = [noted for one in written for noted in one.passes]
    return acceptance(passes, [ids for one in written for ids in one.token_ids], plan.most_drafted)


def learnt(written: Mapping[str, list[WrittenTexts]], plan: DrafterPlan) -> Result:
    """The result: over all texts, bounded by its least and greatest group.

    Args:
        written: ``before`` and ``after``, group by group behind the same prompts.
    """
    ours, theirs = (_acceptance(written[name], plan).tokens_per_pass for name in ("after", "before"))
    pairs = zip(written["after"], written["before"], strict=True)
    each = [_acceptance([a], plan).tokens_per_pass / _acceptance([b], plan).tokens_per_pass for a, b in pairs]
    return Result(
        id="learning",
        value=ours,
        unit="tokens/pass",
        baseline="before",
        baseline_value=theirs,
        ratio=ours / theirs,
        low=min(each),
        high=max(each),
    )


if __name__ == "__main__":
    app()

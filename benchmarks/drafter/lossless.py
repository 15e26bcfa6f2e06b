"""python -m benchmarks.drafter.lossless: the teacher's own texts, sooner; shown, and proved text by text.

Exit code 1 where a text with drafts is not the teacher's own, ties at rounding apart.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.benchmark_results import command_line, machine
from benchmarks.drafter import methods
from benchmarks.drafter.engines import Method, VllmEngines
from benchmarks.drafter.lossless_page import write_page
from benchmarks.drafter.lossless_run import DemoText, LosslessRun
from benchmarks.drafter.lossless_table import LosslessResults, as_results, coloured, differences_of, is_wrong, summary
from benchmarks.drafter.plan import DrafterPlan
from benchmarks.drafter.prompts import prompt_ids, prompts
from benchmarks.drafter.republishing import republished
from benchmarks.gateway.servers import MissingError, cpu_flags, fast_dtype
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.command_line import errors_reported, fail
from latentforge.core.manifest import CheckpointError
from latentforge.core.results import cpu_description
from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer
from tools.processes import ChildError, StoppedError, stop_on_signals

_LOGS = Path("runs") / "logs" / "demo-lossless"
_STUDENT = "student"
_POLL_SECONDS = "0.5"
_PLAN = DrafterPlan()

app = typer.Typer(add_completion=False)


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Option(help="The run's folder of the student that drafts.")] = Path(
        "models/smollm2-student"
    ),
    model: Annotated[Path, typer.Option(help="The teacher that vLLM serves.")] = Path("models/cache/smollm2"),
    per_domain: Annotated[int, typer.Option(min=1, max=64, help="Prompts each of documentation, chat and Python.")] = 2,
    new_tokens: Annotated[int, typer.Option(min=2, max=256, help="Tokens of a text.")] = 128,
    page: Annotated[Path, typer.Option(help="The texts in colours, as a page.")] = Path("results/lossless.html"),
    results: Annotated[Path, typer.Option(help="Folder for demo_lossless_<time>.json.")] = Path("results"),
) -> None:
    """Writes the same prompts by a teacher alone and with drafts, shows whose the tokens are, and compares.

    Needs .venv-vllm and the teacher (make smollm2). A newer checkpoint is swapped in while the student drafts.
    """
    with errors_reported(ChildError, CheckpointError, MissingError, OSError, TextError, TimeoutError, ValueError):
        if not (model / "tokenizer.json").is_file():
            raise MissingError(f"{model} is missing; make smollm2 makes it, or give --model")
        published = list_checkpoints(checkpoint)
        if not published:
            raise MissingError(f"--checkpoint {checkpoint} holds no checkpoint, no step-*/manifest.json")
        try:
            with stop_on_signals():
                same = _run(published[-1], model, per_domain, new_tokens, page, results)
        except StoppedError as stopped:
            typer.echo(f"demo-lossless: {stopped}; everything it started is stopped", err=True)
            raise typer.Exit(stopped.exit_code) from None
        if not same:
            fail("a text with drafts is not the teacher's own; the table above says which")


def _run(checkpoint: Path, model: Path, per_domain: int, new_tokens: int, page: Path, results: Path) -> bool:
    """Whether all texts are the teacher's own."""
    started, before, console = time.monotonic(), machine(), Console()
    asked = prompts(per_domain)
    tokenizer = TextTokenizer(model)
    dtype = fast_dtype(cpu_flags())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-lossless-")))
        (scratch / "empty").mkdir()
        root = scratch / "checkpoints"
        first = republished(checkpoint, root, scratch / "made")
        engines = VllmEngines(stack, model, dtype, _PLAN, _LOGS, scratch)
        running = {}
        for method in [methods.ALONE, _student(root, scratch), *methods.lookups(_PLAN)]:
            console.print(f"starting vLLM: {method.name}")
            running[method.name] = engines.start(method)
        demo = LosslessRun(running, prompt_ids(asked, model), new_tokens, dtype)
        demo.warm_up()
        texts: list[DemoText] = []
        for prompt, ids in zip(asked, demo.ids, strict=True):
            texts.append(demo.write(prompt, ids))
            console.print(coloured(texts[-1], texts[-1].ways[_STUDENT], tokenizer))
        swap = demo.swap(_STUDENT, lambda: republished(first, root, scratch / "made"))
    console.print(summary(texts, swap, list(running)))
    place = write_page(page, texts, _STUDENT, tokenizer)
    path = LosslessResults(
        name="demo_lossless",
        command=command_line("benchmarks.drafter.lossless"),
        device=cpu_description(),
        seed=0,
        results=as_results(texts, swap, list(running)),
        teacher=str(model),
        checkpoint=str(checkpoint),
        dtype=dtype,
        texts=len(texts),
        parted=differences_of(texts, swap),
        machine=before,
        seconds=round(time.monotonic() - started, 1),
    ).write(results)
    console.print(f"written to {path} and {place}")
    parted = [*(one for text in texts for one in text.parted.values()), swap.parted]
    return not any(map(is_wrong, parted))


def _student(root: Path, scratch: Path) -> Method:
    method = methods.student(_STUDENT, root, _PLAN, scratch / "empty")
    return Method(method.name, method.speculative, {**method.env, "LATENTFORGE_POLL_SECONDS": _POLL_SECONDS})


if __name__ == "__main__":
    app()

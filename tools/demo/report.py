"""What a demo measured: one table, and results/demo.json made from the same object."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from latentforge.core.files import write_atomically
from latentforge.core.results import ResultsFile


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    path = folder / "demo.json"
    write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return path


def report_table(result: dict[str, Any]) -> Table:
    """The figures that tell whether the job was done, and how well."""
    ae, student, teacher, decode = (result[part] for part in ("ae", "student", "teacher", "decode"))
    table = Table(title=f"{result['run']} on {result['device']}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    rows = {
        "autoencoder": (
            f"K={ae['k']}, D={ae['d']}; held-out tokens exact {ae['token_exact']:.3%}, whole chunks "
            f"{ae['chunk_exact']:.3%}, tokens under posterior noise {ae['token_exact_noisy']:.3%}"
        ),
        "student": f"{student['steps']:,} steps, {student['tokens']:,} tokens",
        "held-out KD": f"{student['kd_first']:.3f} -> {student['kd_last']:.3f} nats/token",
        "held-out CE": (
            f"{student['ce_first']:.3f} -> {student['ce_last']:.3f} nats/token (unigram {result['unigram_ce']:.3f}, "
            f"teacher {teacher['held_out_nll']:.3f})"
        ),
        "teacher": f"{teacher['model']} ({teacher['revision'][:12]})",
        **_targets_row(result),
        "checkpoints": f"{len(result['checkpoints'])} published, each picked up without a restart",
        "decode": (
            f"{decode['student_tokens_per_s']:.0f} tokens/s in {decode['student_steps_per_s']:.0f} latent steps/s; "
            f"token-level model {decode['token_level_tokens_per_s']:.0f} tokens/s; ratio {decode['ratio']:.2f}"
        ),
        "seconds": ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in result["seconds"].items()),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    table.add_section()
    for sample in result["samples"]:
        # Text: what a model writes may look like markup.
        table.add_row(Text(sample["prompt"]), Text(sample["text"]))
    return table


def _targets_row(result: dict[str, Any]) -> dict[str, str]:
    if made := result.get("generated"):
        text = f"{made['continuations']:,} continuations, {made['tokens']:,} tokens; {made['dropped']:,} dropped"
        return {"written by the teacher": text}
    cache = result["cache"]
    text = (
        f"{cache['hits']:,} hits, {cache['misses']:,} misses; {cache['rows_from_cache']:,} of {cache['rows']:,} "
        "teacher rows came from it"
    )
    return {"cache": text}


def decode_figures(bench: ResultsFile) -> dict[str, float | None]:
    """The demo's decode figures from a bench results file."""
    tokens = bench.by_id["decode_tokens_per_s"]
    return {
        "student_tokens_per_s": tokens.value,
        "student_steps_per_s": bench.by_id["latent_steps_per_s"].value,
        "token_level_tokens_per_s": tokens.baseline_value,
        "ratio": tokens.ratio,
    }

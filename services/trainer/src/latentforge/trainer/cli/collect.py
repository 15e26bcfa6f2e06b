"""The command ``trainer collect``: has a teacher write text once, and keeps it with its rows in a folder."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentforge.trainer.cli.opening import opened_run
from latentforge.trainer.cli.options import GatewayOption, PromptsOption, RunOptions, with_groups


@with_groups
def collect(
    options: RunOptions,
    out: Annotated[Path, typer.Option("--out", help="The folder of kept rows.")],
    gateway: GatewayOption = None,
    prompts: PromptsOption = None,
) -> None:
    """Has a teacher continue prompts made of a run's data, into Parquet files that runs learn from.

    What arrives is kept in runs/RUN/generated/; killed at any moment the same command resumes. Where the run has
    collected before, this only writes the files. --fresh collects anew where teacher, prompts or settings are others.
    """
    from contextlib import closing

    from latentforge.trainer.data.prepare import run_data
    from latentforge.trainer.kept.made import kept_by
    from latentforge.trainer.kept.manifest import KeptTeacher
    from latentforge.trainer.targets.choose import target_kind
    from latentforge.trainer.targets.generated import GeneratedTargets
    from latentforge.trainer.teacher.connection import TeacherLink

    overrides = {"teacher.targets": "generate", "teacher.generate.prompts": prompts}
    with opened_run(options, overrides, gateway) as run:
        with TeacherLink.of(run.settings, run.stop) as link:
            about = link.teacher(run.tokenizer.fingerprint, None, run.recipe.teacher.top_k)
            target_kind(run, f"at {link.target}", about)
            train, held_out = run_data(run, options.data, options.held_out)
            with closing(GeneratedTargets(run, link, train, held_out, about, fresh=options.fresh)) as targets:
                targets.prepare()
                made = kept_by(shlex.join(["trainer", *sys.argv[1:]]))
                manifest = targets.export(out, KeptTeacher.of(about), made)
        kept = sum(part.num_sequences for part in manifest.splits.values())
        typer.echo(f"{out}: {kept:,} continuations")

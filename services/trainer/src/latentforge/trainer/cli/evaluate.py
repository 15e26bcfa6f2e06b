"""The command that measures a model on held-out data."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latentforge.trainer.cli.opening import user_errors
from latentforge.trainer.cli.options import BosOption, EosOption, GatewayOption, PadOption, TokenizerOption


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A published checkpoint's folder, a run (its newest), a token-level student's folder, 'newest' or "
            "'teacher'."
        ),
    ] = "newest",
    data: Annotated[
        Path | None,
        typer.Argument(help="A packed folder or a JSONL file.  [default: what the checkpoint's run held out]"),
    ] = None,
    gateway: GatewayOption = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Leave out what needs the teacher.")] = False,
    teacher_tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--teacher-tokenizer",
            help="Folder of the teacher's tokenizer where the model has another one: the teacher only judges what the "
            "model writes, as text, in nats per token of its own.",
            show_default="the model's",
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    eos_id: EosOption = None,
    pad_id: PadOption = None,
    bos: BosOption = None,
    sequences: Annotated[int, typer.Option("--sequences", min=2, help="Of the likelihood, evenly spread.")] = 40,
    sequence_length: Annotated[
        int | None,
        typer.Option("--sequence-length", help="Of a JSONL file.  [default: 2048 or the context, if smaller]"),
    ] = None,
    bound_chunks: Annotated[
        int, typer.Option("--bound-chunks", min=2, help="Chunks of an energy head's bounds.")
    ] = 512,
    draft_contexts: Annotated[
        int, typer.Option("--draft-contexts", min=0, help="Places where it drafts for the teacher; 0 leaves it out.")
    ] = 256,
    brier_positions: Annotated[
        int, typer.Option("--brier-positions", min=0, help="Places of BrierLM; 0 leaves it out.")
    ] = 2048,
    brier_samples: Annotated[int, typer.Option("--brier-samples", min=2, help="Samples at each place.")] = 2,
    prompts: Annotated[int, typer.Option("--prompts", min=0, help="Of the generations; 0 leaves them out.")] = 32,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Of a prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Of a generation.")] = 128,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Entries of a teacher's row.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of samples, noise and intervals.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Where eval_<time>.json goes.")] = Path("results"),
) -> None:
    """Measures a model on held-out data: likelihood and what each part of the model is worth of it (worth_backbone,
    worth_latent, worth_copy, worth_window: nats/token that are lost without it), KL, acceptance of drafts, BrierLM,
    generations and more."""
    import torch
    from rich.console import Console

    from latentforge.core.settings import load_settings
    from latentforge.text.tokenizer import TextTokenizer
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.evaluate.checkpoint import load_data, load_subject
    from latentforge.trainer.evaluate.command import Options, run_evaluation
    from latentforge.trainer.evaluate.report import print_table

    with user_errors():
        settings = load_settings(TrainerSettings, gateway_target=gateway, tokenizer_path=tokenizer)
        if settings.trainer_threads:
            torch.set_num_threads(settings.trainer_threads)
        console = Console(stderr=True)
        subject = load_subject(checkpoint, settings, eos_id=eos_id, pad_id=pad_id, bos=bos)
        packed = load_data(data, subject, settings, sequence_length, console)
        options = Options(
            sequences=sequences,
            bound_chunks=bound_chunks,
            draft_contexts=draft_contexts,
            brier_positions=brier_positions,
            brier_samples=brier_samples,
            prompts=prompts,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            top_k=top_k,
            seed=seed,
        )
        path, results = run_evaluation(
            subject,
            packed,
            options,
            settings,
            with_teacher=not no_teacher,
            teacher_tokenizer=TextTokenizer(teacher_tokenizer) if teacher_tokenizer else None,
            out=out,
            command=shlex.join(["trainer", *sys.argv[1:]]),
            console=console,
        )
        print_table(results, f"{subject.id} on {packed.folder} ({packed.meta.split})")
        typer.echo(str(path))

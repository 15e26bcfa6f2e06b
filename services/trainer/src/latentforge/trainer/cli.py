"""The command line. Exit codes: 0 done or stopped on request, 1 failed, 2 used wrongly."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Trains LatentForge's autoencoder and student and publishes checkpoints.",
)
data_app = typer.Typer(no_args_is_help=True, help="Makes JSONL data.")
train_app = typer.Typer(no_args_is_help=True, help="Trains one model.")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")

RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe's name (RECIPES_DIR) or a path to a TOML file.")]
RunOption = Annotated[str | None, typer.Option("--run", help="The run's name.  [default: the recipe's name]")]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Forget what this run has made, and start anew; a whole collection of generated text that fits is kept.",
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        "--targets",
        help="score: its rows on the data; generate: its own text; auto: what it can.  [default: the recipe's]",
    ),
]
PromptsOption = Annotated[
    int | None,
    typer.Option("--prompts", help="Prompts that the teacher continues, for generate.  [default: the recipe's]"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Override a recipe's value, e.g. student.optim.lr=0.002; repeatable."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="A JSONL file or a packed folder.  [default: the standard library of the running Python]"
    ),
]
HeldOutOption = Annotated[
    Path | None,
    typer.Option("--held-out", help="A JSONL file or a packed folder for validation.  [default: 5 % of the data]"),
]
LengthOption = Annotated[
    int | None, typer.Option("--sequence-length", help="Tokens per sequence, a multiple of K.  [default: the recipe's]")
]
KOption = Annotated[int | None, typer.Option("--k", help="Tokens per chunk, K.  [default: the recipe's]")]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="The teacher's tokenizer folder.  [default: TOKENIZER_PATH]")
]


@app.callback()
def _main() -> None:
    # Threads that spin while they wait cost a factor of four beside another busy process. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def _user_errors() -> Iterator[None]:
    """Says what a user can put right in plain words, and ends with the right exit code."""
    import grpc

    from latentforge.core.logs import configure_logging
    from latentforge.core.settings import SettingsError
    from latentforge.core.teacher_client import TeacherError
    from latentforge.trainer.interrupt import Interrupted

    del grpc
    configure_logging("trainer")
    try:
        yield
    except Interrupted:
        typer.echo("stopped as asked; everything is saved. Run the same command to go on.", err=True)
        raise typer.Exit(0) from None
    except SettingsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except (ValueError, TeacherError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _context(
    recipe: str,
    run: str | None,
    overrides: dict[str, Any],
    sets: list[str] | None,
    *,
    stop: Callable[[], bool],
    **env: Any,
) -> Any:
    from latentforge.core.settings import load_settings
    from latentforge.trainer.recipes import load_recipe, parse_override
    from latentforge.trainer.run_context import RunContext
    from latentforge.trainer.settings import TrainerSettings
    from latentforge.trainer.status import Status
    from latentforge.trainer.tokenizer import TextTokenizer

    settings = load_settings(TrainerSettings, **env)
    loaded = load_recipe(recipe, settings.recipes_dir, {**overrides, **dict(parse_override(s) for s in sets or [])})
    tokenizer = TextTokenizer(settings.tokenizer_path, eos_id=loaded.data.eos_id, pad_id=loaded.data.pad_id)
    name = run or loaded.name
    return RunContext(name, loaded, settings, tokenizer, Status(name), stop)


@data_app.command("stdlib")
def data_stdlib(
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    split: Annotated[str, typer.Option("--split", help="train or held-out.")] = "train",
) -> None:
    """Writes the running Python's standard library as JSONL, {"text", "name"} per line."""
    from latentforge.trainer.documents import write_stdlib

    if split not in ("train", "held-out"):
        raise typer.BadParameter(f"{split!r} is not train or held-out", param_hint="--split")
    with _user_errors():
        typer.echo(f"{out}: {write_stdlib(out, split)} documents")  # type: ignore[arg-type]


@app.command("pack")
def pack(
    data: Annotated[Path, typer.Argument(help='A JSONL file, {"text"} or {"messages"} per line.')],
    out: Annotated[Path, typer.Option("--out", help="The packed folder to make.")],
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", help="Tokens per sequence, a multiple of K.")
    ] = 2048,
    k: Annotated[int, typer.Option("--k", help="Tokens per chunk, K.")] = 8,
    split: Annotated[str, typer.Option("--split", help="Recorded in the folder.")] = "train",
    tokenizer: TokenizerOption = None,
) -> None:
    """Packs a JSONL file into memory-mapped sequences of token ids."""
    from rich.console import Console

    from latentforge.core.settings import load_settings
    from latentforge.trainer.data import pack_with_bar
    from latentforge.trainer.settings import TrainerSettings
    from latentforge.trainer.tokenizer import TextTokenizer

    with _user_errors():
        settings = load_settings(TrainerSettings, tokenizer_path=tokenizer)
        text_tokenizer = TextTokenizer(settings.tokenizer_path)
        console = Console(stderr=True)
        pack_with_bar(
            data, out, text_tokenizer, sequence_length=sequence_length, chunk_size=k, split=split, console=console
        )
        typer.echo(str(out))


@train_app.command("autoencoder")
def autoencoder(
    recipe: RecipeOption = "demo",
    data: DataOption = None,
    held_out: HeldOutOption = None,
    k: KOption = None,
    d: Annotated[int | None, typer.Option("--d", help="Dimensions of a latent, D.  [default: the recipe's]")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.  [default: the recipe's]")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0.001, help="Passes over the data, instead of --steps.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Chunks per step.  [default: the recipe's]")
    ] = None,
    sequence_length: LengthOption = None,
    run: RunOption = None,
    tokenizer: TokenizerOption = None,
    sets: SetOption = None,
    fresh: FreshOption = False,
) -> None:
    """Trains the autoencoder into runs/RUN/autoencoder/."""
    from latentforge.trainer.data import run_data
    from latentforge.trainer.errors import TrainerError
    from latentforge.trainer.interrupt import StopRequest
    from latentforge.trainer.train_autoencoder import train_autoencoder

    if steps is not None and epochs is not None:
        raise typer.BadParameter("give --steps or --epochs, not both", param_hint="--epochs")
    overrides = {
        "chunk_size": k,
        "autoencoder.model.latent_size": d,
        "autoencoder.optim.steps": steps,
        "autoencoder.optim.batch_size": batch_size,
        "data.sequence_length": _length(sequence_length, data),
    }
    with _user_errors(), StopRequest() as stop:
        context = _context(recipe, run, overrides, sets, stop=stop, tokenizer_path=tokenizer)
        if fresh:
            _forget(context.folder / "state" / "autoencoder", context.folder / "autoencoder")
        train, check = run_data(context, data, held_out)
        if epochs is not None:
            chunks = len(train) * train.meta.sequence_length // context.recipe.chunk_size
            by_epochs = math.ceil(epochs * chunks / context.recipe.autoencoder.optim.batch_size)
            context = _context(
                recipe,
                run,
                overrides | {"autoencoder.optim.steps": by_epochs},
                sets,
                stop=stop,
                tokenizer_path=tokenizer,
            )
        if not len(train):
            raise TrainerError(f"{data} holds no sequence")
        result = train_autoencoder(context, train, check)
        typer.echo(
            f"autoencoder K={result['k']} D={result['d']}: {result['token_exact']:.2%} of held-out tokens and "
            f"{result['chunk_exact']:.2%} of chunks exact, {result['token_exact_noisy']:.2%} of tokens under "
            "posterior noise; "
            f"{context.folder / 'autoencoder'}"
        )


@train_app.command("student")
def student(
    recipe: RecipeOption = "demo",
    data: DataOption = None,
    held_out: HeldOutOption = None,
    ae_checkpoint: Annotated[
        Path | None,
        typer.Option("--ae-checkpoint", help="A trained autoencoder's folder.  [default: runs/RUN/autoencoder]"),
    ] = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", help="host:port of the teacher-gateway.  [default: GATEWAY_TARGET]")
    ] = None,
    k: KOption = None,
    d: Annotated[
        int | None, typer.Option("--d", help="Dimensions of a latent, D.  [default: the autoencoder's]")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.  [default: the recipe's]")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Sequences per step.  [default: the recipe's]")
    ] = None,
    kd_w: Annotated[
        float | None, typer.Option("--kd-w", help="Weight of the KD loss.  [default: the recipe's]")
    ] = None,
    mse_w: Annotated[
        float | None, typer.Option("--mse-w", help="Weight of the latents' MSE.  [default: the recipe's]")
    ] = None,
    ce_w: Annotated[
        float | None, typer.Option("--ce-w", help="Weight of the cross-entropy.  [default: the recipe's]")
    ] = None,
    energy_w: Annotated[
        float | None, typer.Option("--energy-w", help="Weight of the energy loss.  [default: the recipe's]")
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="deterministic or energy.  [default: the recipe's]")
    ] = None,
    targets: TargetsOption = None,
    prompts: PromptsOption = None,
    sequence_length: LengthOption = None,
    run: RunOption = None,
    tokenizer: TokenizerOption = None,
    sets: SetOption = None,
    fresh: FreshOption = False,
) -> None:
    """Trains the student against the gateway and publishes checkpoints/RUN/."""
    from latentforge.trainer.data import run_data
    from latentforge.trainer.interrupt import StopRequest
    from latentforge.trainer.train_student import RESULT, train_student

    overrides = {
        "chunk_size": k,
        "student.optim.steps": steps,
        "student.optim.batch_size": batch_size,
        "student.weights.kd": kd_w,
        "student.weights.mse": mse_w,
        "student.weights.ce": ce_w,
        "student.weights.energy": energy_w,
        "student.model.head": head,
        "teacher.targets": targets,
        "teacher.generate.prompts": prompts,
        "data.sequence_length": _length(sequence_length, data),
    }
    with _user_errors(), StopRequest() as stop:
        context = _context(recipe, run, overrides, sets, stop=stop, gateway_target=gateway, tokenizer_path=tokenizer)
        if fresh:
            _forget(
                context.folder / "state" / "student",
                context.folder / RESULT,
                context.settings.checkpoints_dir / context.name,
            )
        train, check = run_data(context, data, held_out)
        result = train_student(context, train, check, ae_checkpoint or context.folder / "autoencoder", d, fresh=fresh)
        first, last = result["curve"][0], result["curve"][-1]
        text = "held-out" if result["targets"] == "score" else "held-out continuations:"
        typer.echo(
            f"student: {text} CE {first['ce']:.3f} -> {last['ce']:.3f}, KD {first['kd']:.3f} -> {last['kd']:.3f} "
            "nats/token "
            f"(unigram {result['unigram_ce']:.3f}, teacher {result['teacher']['held_out_nll']:.3f}); "
            f"{result['checkpoints'][-1]}"
        )


@app.command("run")
def run_all(
    recipe: RecipeOption = "demo",
    data: DataOption = None,
    held_out: HeldOutOption = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", help="host:port of the teacher-gateway.  [default: GATEWAY_TARGET]")
    ] = None,
    targets: TargetsOption = None,
    prompts: PromptsOption = None,
    run: RunOption = None,
    tokenizer: TokenizerOption = None,
    sets: SetOption = None,
    fresh: FreshOption = False,
    status_port: Annotated[
        int | None, typer.Option("--status-port", help="Serve GET /health and GET /status here.")
    ] = None,
    status_host: Annotated[str, typer.Option("--status-host", help="The address to serve them at.")] = "127.0.0.1",
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Stay up after the run is done, until SIGTERM.")
    ] = False,
) -> None:
    """Data, autoencoder, student: the whole job; what is finished is not done again."""
    from latentforge.trainer.interrupt import StopRequest
    from latentforge.trainer.pipeline import SUMMARY, run_pipeline, targets_line
    from latentforge.trainer.status import StatusServer

    if keep_serving and status_port is None:
        raise typer.BadParameter("there is nothing to serve without --status-port", param_hint="--keep-serving")
    with _user_errors(), StopRequest() as stop:
        overrides = {"teacher.targets": targets, "teacher.generate.prompts": prompts}
        context = _context(recipe, run, overrides, sets, stop=stop, gateway_target=gateway, tokenizer_path=tokenizer)
        server = StatusServer(context.status, status_host, status_port) if status_port is not None else None
        try:
            if fresh:
                made = context.folder.iterdir() if context.folder.is_dir() else ()
                _forget(*(p for p in made if p.name != "generated"), context.settings.checkpoints_dir / context.name)
            summary = run_pipeline(context, data, held_out, fresh=fresh)
            context.status.done = True
            typer.echo(
                f"{context.folder / SUMMARY}; {len(summary['checkpoints'])} checkpoints, the last is "
                f"{summary['checkpoints'][-1]}"
            )
            typer.echo(targets_line(summary))
            while keep_serving and not stop():
                time.sleep(0.2)
        except BaseException as error:
            context.status.error = str(error) or type(error).__name__
            raise
        finally:
            if server is not None:
                server.close()


def _length(chosen: int | None, data: Path | None) -> int | None:
    """Packed data brings its own sequence length."""
    if chosen is not None or data is None or not data.is_dir():
        return chosen
    from latentforge.trainer.packing import PackedData

    with _user_errors():
        return PackedData(data).meta.sequence_length


def _forget(*places: Path) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

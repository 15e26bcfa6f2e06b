"""The command line: serve, infer, bench."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from latentforge.core.command_line import WRONG_USAGE, errors_reported, fail
from latentforge.core.errors import describe_errors
from latentforge.core.logs import configure_logging
from latentforge.core.proxies import is_loopback, proxy_hint, unusable_proxy
from latentforge.core.settings import load_settings
from latentforge.inference.checkpoints.snapshot import Snapshot
from latentforge.inference.cli import bench as benchmark
from latentforge.inference.cli import pins
from latentforge.inference.cli.access import key_headers
from latentforge.inference.main import build_registry
from latentforge.inference.main import serve as run_server
from latentforge.inference.rest.completion import PromptError, answer, prepare
from latentforge.inference.rest.schemas import GenerateRequest, GenerateResponse
from latentforge.inference.settings import InferenceSettings
from latentforge.model.engine import offline
from latentforge.model.sampling import SamplingParams

app = typer.Typer(
    help="Serves the newest checkpoint, asks it, measures it.", no_args_is_help=True, add_completion=False
)

app.command("list")(pins.list_published)
app.command("pin")(pins.pin)
app.command("unpin")(pins.unpin)

Checkpoints = Annotated[Path | None, typer.Option("--checkpoints", help="Checkpoints folder (CHECKPOINTS_DIR).")]
Run = Annotated[str | None, typer.Option("--run", help="Use this run's only (CHECKPOINT_RUN).")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option("--temp", min=0, max=100, help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens with this share of the mass.")]
TopK = Annotated[int, typer.Option(min=0, help="Keep so many of the likeliest tokens; 0 keeps all.")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (INFERENCE_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (INFERENCE_PORT).")] = None,
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Serve over REST until SIGTERM; a newer checkpoint is picked up without a restart."""
    # What is said of the settings themselves comes before the level that they ask for.
    configure_logging("inference")
    with errors_reported():
        settings = load_settings(
            InferenceSettings,
            inference_host=host,
            inference_port=port,
            checkpoints_dir=checkpoints,
            checkpoint_run=run,
        )
        configure_logging("inference", level=settings.log_level, json_lines=settings.log_json)
        run_server(settings)


@app.command()
def infer(
    prompt: Annotated[str, typer.Option(help="What to continue; may be empty.")] = "",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
    parse_special_tokens: Annotated[
        bool, typer.Option("--parse-special-tokens", help="Read special tokens that are written in the prompt as such.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="Ask a running server, like http://localhost:7860.")] = None,
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Continue one prompt with the newest checkpoint."""
    request = _request(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        parse_special_tokens=parse_special_tokens,
    )
    if url:
        answered = _ask(url, request)
    else:
        snapshot = _newest(checkpoints, run)
        with errors_reported(PromptError):
            planned = prepare(snapshot, request)
        [result] = offline.run([planned.generation])
        answered = answer(snapshot, planned, result)
    typer.echo(answered.text)
    usage = answered.usage
    typer.echo(
        f"[{answered.checkpoint}, {usage.completion_tokens} tokens in {usage.latent_steps} latent steps, "
        f"{answered.tokens_per_second:.1f} tokens/s, seed {answered.seed}, {answered.finish_reason}]",
    )


@app.command()
def bench(
    prompts_file: Annotated[Path, typer.Option(help="One prompt a line.")] = Path("prompts.txt"),
    max_tokens: MaxTokens = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Times that every prompt is run.")] = 5,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    results: Annotated[Path, typer.Option(help="Folder for bench_<time>.json.")] = Path("results"),
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Measure decode speed beside a token-level model with the same backbone."""
    request = _request(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, prompt="")
    params = SamplingParams.model_validate(request.model_dump(include=set(SamplingParams.model_fields)))
    with errors_reported(ValueError):
        prompts = benchmark.read_prompts(prompts_file)
        snapshot = _newest(checkpoints, run)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("decoding", total=2 * repeats * len(prompts))
            measured = benchmark.measure(snapshot, prompts, max_tokens, repeats, params, lambda: progress.advance(task))
    found = measured.results()
    command = f"inference {shlex.join(sys.argv[1:])}"
    path = benchmark.write(
        results, snapshot, found, command, params, max_tokens=max_tokens, repeats=repeats, num_prompts=len(prompts)
    )
    console = Console()
    # Figures are compared by eye, so a narrow pipe must not fold them.
    console.width = max(console.width, 110)
    title = f"{snapshot.id}: {len(prompts)} prompts, {max_tokens} tokens each, {repeats} repeats"
    console.print(benchmark.table(found, title))
    typer.echo(f"written to {path}")


def _newest(checkpoints: Path | None, run: str | None) -> Snapshot:
    with errors_reported():
        settings = load_settings(InferenceSettings, checkpoints_dir=checkpoints, checkpoint_run=run)
        # What is wrong with a checkpoint is told once, by the error below.
        configure_logging("inference", level="ERROR")
        registry = build_registry(settings)
    registry.refresh()
    if registry.current is None:
        fail(
            f"no checkpoint to load: waiting for {registry.waiting_for}. `make demo` makes one, and so does "
            "`make toy train-ae train-student`; --checkpoints or CHECKPOINTS_DIR names another folder"
        )
    return registry.current


def _request(**values: Any) -> GenerateRequest:
    try:
        return GenerateRequest(**values)
    except ValidationError as error:
        fail("; ".join(describe_errors(error)), code=WRONG_USAGE)


def _ask(url: str, request: GenerateRequest) -> GenerateResponse:
    body, headers = request.model_dump(exclude_none=True), key_headers()
    try:
        # The context is made here since a client without the environment's proxies ignores its SSL_CERT_FILE as well.
        client = httpx.Client(trust_env=not is_loopback(url), verify=httpx.create_ssl_context(), timeout=600)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        fail(unusable_proxy(error), code=WRONG_USAGE)
    try:
        with client:
            response = client.post(f"{url.rstrip('/')}/generate", json=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(
            f"no inference server answers at {url} ({error}); start one with `make serve`, or leave --url out"
            f"{proxy_hint(url)}"
        )
    if response.status_code != 200:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{response.text[:200]}{proxy_hint(url)}"
        fail(f"{url} answered {response.status_code}: {message}")
    return GenerateResponse.model_validate(response.json())

"""The command ``teacher-gateway``."""

import asyncio
import os
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from latentforge.core.command_line import FAILED, errors_reported
from latentforge.core.logs import configure_logging
from latentforge.core.settings import load_settings
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.cache import open_cache
from latentforge.gateway.cache.base import Cache, CacheError
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient

app = typer.Typer(help="One gRPC logprobs API over every teacher.", no_args_is_help=True)
cache_app = typer.Typer(help="The cache of CACHE_URL.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

T = TypeVar("T")

Backend = Annotated[str | None, typer.Option(help="Overrides TEACHER_BACKEND.")]
CacheUrl = Annotated[str | None, typer.Option(help="Overrides CACHE_URL.")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Overrides GATEWAY_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Overrides GATEWAY_PORT; 0 takes a free port.")] = None,
    backend: Backend = None,
    teacher: Annotated[Path | None, typer.Option(help="Overrides EMBEDDED_TEACHER_PATH.")] = None,
    cache_url: CacheUrl = None,
) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    # What is said of the settings themselves comes before the level that they ask for.
    configure_logging("teacher-gateway")
    settings = _settings(
        gateway_host=host,
        gateway_port=port,
        teacher_backend=backend,
        embedded_teacher_path=teacher,
        cache_url=cache_url,
    )
    configure_logging("teacher-gateway", level=settings.log_level, json_lines=settings.log_json)
    from latentforge.gateway.main import serve as serve_until_signal  # torch takes seconds that --help need not wait

    with errors_reported(BackendError):
        asyncio.run(serve_until_signal(settings))


@app.command(name="serve-vllm")
def serve_vllm(
    arguments: Annotated[list[str] | None, typer.Argument(help="More of vLLM's own, after --.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Only show the command line.")] = False,
) -> None:
    """Becomes the vLLM server that TEACHER_BACKEND=vllm-local asks: VLLM_LOCAL_MODEL at VLLM_LOCAL_URL."""
    settings = _settings()
    from latentforge.gateway.backends.vllm.command import vllm_command, vllm_environment

    with errors_reported():
        command = [*vllm_command(settings), *(arguments or [])]
    typer.echo(shlex.join(command), err=not show)
    if not show:
        os.execve(command[0], command, vllm_environment(settings, dict(os.environ)))


@app.command()
def check(backend: Backend = None) -> None:
    """Tries the settings of the chosen teacher for real: a line per finding, exit 1 if one is bad."""
    settings = _settings(teacher_backend=backend)
    configure_logging("teacher-gateway", level="WARNING", json_lines=settings.log_json)
    from latentforge.gateway.check.findings import check as findings_of

    async def report() -> bool:
        good = True
        async for finding in findings_of(settings):
            good = good and finding.ok
            typer.secho("ok    " if finding.ok else "FAIL  ", fg="green" if finding.ok else "red", nl=False)
            typer.echo(finding.text)
        return good

    if not asyncio.run(report()):
        raise typer.Exit(FAILED)


@cache_app.command()
def stats(
    target: Annotated[str | None, typer.Option(help="host:port of a running gateway: its hits and misses too.")] = None,
    cache_url: CacheUrl = None,
) -> None:
    """Prints entries and bytes of the store; with --target what a running gateway counted."""
    if target is None:
        store = _with_cache(cache_url, lambda cache: cache.stats())
        _print({"entries": store.entries, "bytes": store.bytes})
        return

    settings = _settings()
    with (
        errors_reported(TeacherError),
        SyncTeacherClient(
            target, timeout=10, api_key=settings.gateway_api_key, tls_ca=settings.gateway_tls_ca
        ) as client,
    ):
        answer = client.cache_stats()
    values = {field.name: getattr(answer, field.name) for field in answer.DESCRIPTOR.fields}
    # No problem is nothing to print.
    _print({name: value for name, value in values.items() if value != ""})


@cache_app.command()
def clear(cache_url: CacheUrl = None) -> None:
    """Removes every entry."""
    typer.echo(f"{_with_cache(cache_url, lambda cache: cache.clear())} entries removed")


def _with_cache(url: str | None, work: Callable[[Cache], Awaitable[T]]) -> T:
    settings = _settings(cache_url=url)

    async def run() -> T:
        cache = open_cache(settings)
        try:
            return await work(cache)
        finally:
            await cache.close()

    with errors_reported(CacheError):
        return asyncio.run(run())


def _settings(**overrides: Any) -> GatewaySettings:
    with errors_reported():
        return load_settings(GatewaySettings, **overrides)


def _print(values: dict[str, Any]) -> None:
    table = Table("", "", show_header=False, box=None)
    for name, value in values.items():
        places = 6 if name.endswith("_usd") else 1
        table.add_row(name, f"{value:,.{places}f}" if isinstance(value, float) else f"{value}")
    Console().print(table)

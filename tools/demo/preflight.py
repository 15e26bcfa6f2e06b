"""What must hold before a demo starts; each refusal says what to change."""

import os
import shutil
import socket
from pathlib import Path

from tools.demo.settings import TEACHER, DemoSettings

_LISTEN = "0A"


class PreflightError(RuntimeError):
    """The demo cannot start; the message says what to do about it."""


def preflight(settings: DemoSettings) -> None:
    """Raises PreflightError for the first thing that stands in the way."""
    if not (TEACHER / "model.safetensors").is_file():
        raise PreflightError(f"{TEACHER} has no model.safetensors; fetch it with git, or make it: make teacher")
    check_text_file("PROMPTS_FILE", settings.prompts_file)
    if settings.data is not None:
        check_text_file("DATA", settings.data)
    check_disk(settings.demo_folder, settings.demo_min_free_gb)
    if len(set(settings.ports.values())) < len(settings.ports):
        named = ", ".join(f"{name}={port}" for name, port in settings.ports.items())
        raise PreflightError(f"{named}: every service needs a port of its own")
    for variable, port in settings.ports.items():
        check_port(variable, port)


def check_text_file(variable: str, path: Path) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            if not file.readline().strip():
                raise PreflightError(f"{variable}={path} begins with an empty line or is empty")
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"{variable}={path} cannot be read: {error}") from None


def check_disk(folder: Path, min_free_gb: float) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        raise PreflightError(f"DEMO_FOLDER={folder} cannot be used: {error}") from None
    if not os.access(folder, os.W_OK):
        raise PreflightError(f"DEMO_FOLDER={folder} is not writable for you")
    if free < min_free_gb:
        raise PreflightError(
            f"{folder} has {free:.1f} GB free, the demo wants {min_free_gb:.1f} GB; free some, put DEMO_FOLDER "
            "elsewhere, or set DEMO_MIN_FREE_GB lower"
        )


def check_port(variable: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            owner = port_owner(port)
            whose = f" by {owner}" if owner else ""
            raise PreflightError(
                f"port {port} is taken{whose} ({error.strerror}); stop that, or choose another: make demo {variable}=N"
            ) from None


def port_owner(port: int) -> str | None:
    """Name and pid of the process that listens on a TCP port, where /proc lets us see it."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        try:
            if any(os.readlink(link) in inodes for link in (process / "fd").iterdir()):  # noqa: PTH115 - no such file
                return f"{(process / 'comm').read_text(encoding='utf-8').strip()} (pid {process.name})"
        except OSError:
            continue
    return None

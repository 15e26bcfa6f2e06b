"""Makes .venv-litellm with the LiteLLM proxy in it, which `make bench-gateway` measures; nothing else uses it.

Usage: python -m tools.litellm_env
"""

import os
import subprocess
import sys
from pathlib import Path

from latentforge.core.command_line import fail

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-litellm"
VENV_PYTHON = VENV / "bin" / "python"
COMMAND = VENV / "bin" / "litellm"
VERSION = "1.106.2"

_IS_READY = f"import importlib.metadata as m, sys; import litellm; sys.exit(m.version('litellm') != {VERSION!r})"


def is_ready() -> bool:
    """Whether the environment holds this version, and it can be imported."""
    if not (VENV_PYTHON.exists() and COMMAND.exists()):
        return False
    return subprocess.run([VENV_PYTHON, "-c", _IS_READY], capture_output=True, check=False).returncode == 0


def make() -> None:
    """Makes the environment anew."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command.append(f"litellm[proxy]=={VERSION}")
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_NO_INPUT": "1"}, check=False).returncode != 0:
        fail(f"pip failed (its reason is above); the command was: {' '.join(command)}")


def main() -> None:
    if is_ready():
        sys.stdout.write(f"litellm_env: {VENV.name} has litellm {VERSION}\n")
        return
    sys.stdout.write(f"litellm_env: installing litellm {VERSION} into {VENV.name}; this takes a minute or two\n")
    sys.stdout.flush()
    make()
    if not is_ready():
        fail(f"{VENV} is not as it should be after the installation; remove it and run again")


if __name__ == "__main__":
    main()

"""Makes .venv-lm-eval with lm-evaluation-harness in it, apart from .venv: it brings along what nothing else here needs.

Usage: python -m tools.lm_eval_env
"""

import os
import subprocess
import sys
from pathlib import Path

from latentforge.core.command_line import fail

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-lm-eval"
VENV_PYTHON = VENV / "bin" / "python"
COMMAND = VENV / "bin" / "lm_eval"
VERSION = "0.4.13"
# Which tokenises; without torch.
TRANSFORMERS = "5.23.0"

_IS_READY = (
    f"import importlib.metadata as m, sys; import lm_eval; sys.exit(m.version('lm_eval') != {VERSION!r} "
    f"or m.version('transformers') != {TRANSFORMERS!r})"
)


def is_ready() -> bool:
    """Whether the environment holds these versions, and the harness can be imported."""
    if not (VENV_PYTHON.exists() and COMMAND.exists()):
        return False
    return subprocess.run([VENV_PYTHON, "-c", _IS_READY], capture_output=True, check=False).returncode == 0


def make() -> None:
    """Makes the environment anew."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += [f"lm_eval[api]=={VERSION}", f"transformers=={TRANSFORMERS}"]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_NO_INPUT": "1"}, check=False).returncode != 0:
        fail(f"pip failed (its reason is above); the command was: {' '.join(command)}")


def main() -> None:
    if is_ready():
        sys.stdout.write(f"lm_eval_env: {VENV.name} has lm_eval {VERSION}\n")
        return
    sys.stdout.write(f"lm_eval_env: installing lm_eval {VERSION} into {VENV.name}; this takes a minute or two\n")
    sys.stdout.flush()
    make()
    if not is_ready():
        fail(f"{VENV} is not as it should be after the installation; remove it and run again")


if __name__ == "__main__":
    main()

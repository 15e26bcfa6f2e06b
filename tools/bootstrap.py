"""Makes .venv and installs our packages into it, with nothing but a bare Python.

Usage: python3 tools/bootstrap.py [--dev]
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
PACKAGES = (
    "proto",
    "libs/core",
    "libs/text",
    "libs/teacher-client",
    "libs/model",
    "libs/drafter",
    "libs/snapshots",
    "libs/vllm",
    "services/teacher-gateway",
    "services/trainer",
    "services/inference",
)
OLDEST = (3, 11)


def refuse(message: str) -> NoReturn:
    sys.stderr.write("error: " + message + "\n")
    sys.exit(1)


def check_python() -> None:
    # Only what an old Python can parse and import may stand above and in here.
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST:
        refuse(sys.executable + " is Python " + version + "; 3.11 or newer is needed: make setup PYTHON=python3.11")
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        package = "python" + ".".join(version.split(".")[:2]) + "-venv"
        refuse(
            sys.executable + " has no module " + missing[0] + ", so it cannot make a virtual environment. "
            "On Debian and Ubuntu: apt-get install " + package
        )


def venv_works() -> bool:
    try:
        return subprocess.run([VENV_PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def pip(*args: str) -> None:
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["-c", "constraints.txt", *args]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        refuse("pip could not install what is needed (its reason is above); the command was: " + " ".join(command))


def main(dev: bool) -> None:
    check_python()
    if not venv_works():
        # A venv whose Python is gone, or one without pip, is of no use to anybody.
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    pip("setuptools", "wheel")
    editable = [arg for package in PACKAGES for arg in ("-e", package)]
    pip("--no-build-isolation", *editable, *(["-r", "requirements-dev.txt"] if dev else []))


if __name__ == "__main__":
    main(dev="--dev" in sys.argv[1:])

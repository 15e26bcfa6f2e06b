"""Makes .venv-suffix, a folder with the package that vLLM's suffix decoding is made of, for `make bench-drafter`.

It is apart from .venv-vllm, since the package brings along a plugin that every vLLM beside it would load. There is no
wheel of it: what it is built with goes into a temporary folder, but for a compiler of C++20.

Usage: python -m tools.suffix_env
"""

import os
import subprocess
import sys
import tempfile

from latentforge.core.command_line import fail
from tools import vllm_env

FOLDER = vllm_env.ROOT / ".venv-suffix"
# The one that vLLM 0.32 asks for.
PACKAGE, VERSION = "arctic-inference", "0.1.1"
# What its build asks for, less torch, of which it takes a folder's name alone: vLLM's does.
_BUILT_WITH = ("setuptools>=77", "wheel", "ninja", "cmake>=3.18", "nanobind==2.9.2", "grpcio-tools")
_IS_READY = "from arctic_inference.suffix_decoding import SuffixDecodingCache"


def is_ready() -> bool:
    """Whether vLLM's Python can import what is in the folder."""
    if not (FOLDER.is_dir() and vllm_env.VENV_PYTHON.exists()):
        return False
    env = {**os.environ, "PYTHONPATH": str(FOLDER)}
    command = [str(vllm_env.VENV_PYTHON), "-c", _IS_READY]
    return subprocess.run(command, capture_output=True, env=env, check=False).returncode == 0


def make() -> None:
    """Builds the package; needs .venv-vllm."""
    with tempfile.TemporaryDirectory(prefix="suffix-env-") as tools:
        _pip("install", "--target", tools, *_BUILT_WITH)
        env = {
            "PYTHONPATH": tools,
            "PATH": f"{tools}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "CMAKE_ARGS": f"-DPython_EXECUTABLE={vllm_env.VENV_PYTHON}",
        }
        _pip(
            "install", "--no-deps", "--no-build-isolation", "--upgrade", "--target", str(FOLDER),
            f"{PACKAGE}=={VERSION}", **env,
        )  # fmt: skip


def _pip(*args: str, **env: str) -> None:
    command = [str(vllm_env.VENV_PYTHON), "-m", "pip", *args, "--quiet", "--disable-pip-version-check"]
    if subprocess.run(command, env={**os.environ, "PIP_NO_INPUT": "1", **env}, check=False).returncode != 0:
        fail(f"pip failed (its reason is above); the command was: {' '.join(command)}")


def main() -> None:
    if is_ready():
        sys.stdout.write(f"suffix_env: {FOLDER.name} has {PACKAGE} {VERSION}\n")
        return
    if not vllm_env.is_ready():
        fail(f"{vllm_env.VENV.name} is not ready; run python -m tools.vllm_env")
    sys.stdout.write(f"suffix_env: building {PACKAGE} {VERSION} into {FOLDER.name}; this takes a minute\n")
    sys.stdout.flush()
    make()
    if not is_ready():
        fail(f"{FOLDER} is not as it should be after the installation; remove it and run again")
    sys.stdout.write(f"suffix_env: {FOLDER.name} has {PACKAGE} {VERSION}\n")


if __name__ == "__main__":
    main()

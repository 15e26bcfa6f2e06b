"""Environments beside .venv, made by pip, for programs that nothing else here needs."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from latentforge.core.command_line import fail

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class PipEnv:
    """One program's environment.

    Attributes:
        name: the program's distribution, module and command.
        folder: where the environment is.
        versions: of distributions, with the extras that pip is to install: ``{"lm_eval[api]": "0.4.13"}``.
        has_command: it comes with a command of its name.
    """

    name: str
    folder: Path
    versions: dict[str, str]
    has_command: bool = True

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.folder / "bin" / self.name

    def is_ready(self) -> bool:
        """Whether it holds these versions, and the program can be imported."""
        if not self.python.exists() or (self.has_command and not self.command.exists()):
            return False
        wanted = {distribution.partition("[")[0]: version for distribution, version in self.versions.items()}
        asked = (
            f"import importlib.metadata as m, sys; import {self.name}; "
            # A build for one kind of machine has a version of its own behind a plus.
            f"sys.exit(any(m.version(name).partition('+')[0] != version for name, version in {wanted!r}.items()))"
        )
        return subprocess.run([self.python, "-c", asked], capture_output=True, check=False).returncode == 0

    def make(self) -> None:
        """Makes it anew where it is not ready, and says on stdout what it does; ends the program where that fails."""
        version = next(iter(self.versions.values()))
        if not self.is_ready():
            _say(f"installing {self.name} {version} into {self.folder.name}; this takes a minute or two")
            subprocess.run([sys.executable, "-m", "venv", "--clear", self.folder], check=True)
            command = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            command += [f"{distribution}=={version}" for distribution, version in self.versions.items()]
            if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_NO_INPUT": "1"}, check=False).returncode != 0:
                fail(f"pip failed (its reason is above); the command was: {' '.join(command)}")
            if not self.is_ready():
                fail(f"{self.folder} is not as it should be after the installation; remove it and run again")
        _say(f"{self.folder.name} has {self.name} {version}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()

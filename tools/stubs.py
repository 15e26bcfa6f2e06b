"""Makes the Python stubs of the teacher API with the pinned generator, or checks that they are up to date.

Usage: python -m tools.stubs [--check]
"""

import filecmp
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
API = Path("latentforge/teacher/v1")
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def generate(out: Path) -> None:
    """Writes the stubs of every .proto of the API under ``out``.

    Raises:
        subprocess.CalledProcessError: protoc refused; its reason is on stderr.
    """
    spec = importlib.util.find_spec("google.rpc")
    assert spec is not None
    assert spec.submodule_search_locations
    # googleapis-common-protos brings its .proto files along with its modules.
    common_protos = Path(next(iter(spec.submodule_search_locations))).parents[1]
    # Named in full: the environment need not be activated.
    plugins = [f"--plugin={name}={Path(sys.executable).parent / name}" for name in PLUGINS]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    sources = [str(path.relative_to(PROTO)) for path in sorted((PROTO / API).glob("*.proto"))]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{common_protos}"]
    run = subprocess.run([*command, *plugins, *outputs, *sources], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.stderr.write(run.stderr)
        run.check_returncode()


def stale(fresh: Path) -> list[str]:
    """Names of stubs that differ from those under ``fresh``, are missing, or have no .proto any more."""
    made, kept = fresh / API, PROTO / API
    names = {path.name for folder in (made, kept) for path in folder.glob("*_pb2*")}
    return sorted(n for n in names if not _same(made / n, kept / n))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def main(check: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = stale(fresh)
        if check and names:
            sys.stderr.write(f"error: proto/{API}: {', '.join(names)} not as the .proto says; run: make stubs\n")
            return 1
        for name in names:
            (PROTO / API / name).unlink(missing_ok=True)
            if (fresh / API / name).is_file():
                shutil.copyfile(fresh / API / name, PROTO / API / name)
        sys.stdout.write(f"stubs: {'made ' + ', '.join(names) if names else 'up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))

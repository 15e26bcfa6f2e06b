"""Makes .venv-litellm with the LiteLLM proxy in it, which `make bench-gateway` measures; nothing else uses it.

Usage: python -m tools.litellm_env
"""

from tools.pip_env import ROOT, PipEnv

VERSION = "1.106.2"
LITELLM = PipEnv("litellm", ROOT / ".venv-litellm", {"litellm[proxy]": VERSION})

if __name__ == "__main__":
    LITELLM.make()

"""Makes .venv-trl with TRL in it, apart from .venv: `make test-trl` trains with its own trainer; nothing else uses it.

Usage: python -m tools.trl_env
"""

from tools.pip_env import ROOT, PipEnv

# Its server client asks for requests and names it in no requirement.
TRL = PipEnv(
    "trl", ROOT / ".venv-trl", {"trl": "1.16.0", "torch": "2.13.0", "transformers": "5.23.0", "requests": "2.34.2"}
)

if __name__ == "__main__":
    TRL.make()

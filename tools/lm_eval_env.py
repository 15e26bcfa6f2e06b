"""Makes .venv-lm-eval with lm-evaluation-harness in it, apart from .venv: it brings along what nothing else here needs.

Usage: python -m tools.lm_eval_env
"""

from tools.pip_env import ROOT, PipEnv

# transformers tokenises; without torch.
LM_EVAL = PipEnv("lm_eval", ROOT / ".venv-lm-eval", {"lm_eval[api]": "0.4.13", "transformers": "5.23.0"})

if __name__ == "__main__":
    LM_EVAL.make()

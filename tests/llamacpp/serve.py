"""llama.cpp's HTTP server until it is killed. Run by .venv-llamacpp's Python, which has nothing of ours.

Usage: python serve.py MODEL.gguf PORT CONTEXT
"""

import sys
import threading

import xllamacpp  # type: ignore[import-not-found]

SLOTS = 2


def main(model: str, port: int, context: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = port
    params.n_ctx = SLOTS * context
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = 1
    _ = xllamacpp.Server(params)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""python -m tools.venice_server: try TEACHER_BACKEND=venice without Venice."""

import argparse
import sys
from pathlib import Path

import torch
import transformers
import uvicorn

from latentforge.core.command_line import DONE, WRONG_USAGE, fail
from latentforge.core.sockets import http_address, listening_socket
from tools.venice_server.app import MODEL, VeniceServer
from tools.venice_server.control import FaultControl
from tools.venice_server.text_model import TextModel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8400, help="0 takes a free one")
    parser.add_argument("--model-folder", type=Path, default=Path("models/stdlib-teacher"))
    parser.add_argument("--key", default="sk-local", help="what VENICE_API_KEY must be")
    parser.add_argument("--token-bytes", choices=("exact", "lossy", "none"), default="exact")
    parser.add_argument("--requests-per-minute", type=int, default=1_000_000)
    options = parser.parse_args()
    if not (options.model_folder / "config.json").is_file():
        fail(
            f"--model-folder {options.model_folder} has no config.json; give a causal model's folder", code=WRONG_USAGE
        )
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    control = FaultControl(
        key=options.key, token_bytes=options.token_bytes, requests_per_minute=options.requests_per_minute
    )
    server = VeniceServer(TextModel(options.model_folder), control)
    try:
        listening = listening_socket("127.0.0.1", options.port)
    except OSError as error:
        fail(f"--port {options.port} cannot be listened on ({error.strerror}); choose another", code=WRONG_USAGE)
    config = uvicorn.Config(server.app, log_level="warning", lifespan="off", ws="none")
    url = f"{http_address(listening)}/api/v1"
    sys.stdout.write(
        f"serving {options.model_folder} in Venice's API; use it with\n"
        f"TEACHER_BACKEND=venice VENICE_BASE_URL={url} VENICE_API_KEY={options.key} VENICE_MODEL={MODEL} "
        f"TOKENIZER_PATH={options.model_folder}\n"
    )
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listening])
    return DONE


if __name__ == "__main__":
    sys.exit(main())

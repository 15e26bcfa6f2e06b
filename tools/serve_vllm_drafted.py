"""Starts vLLM with a student that drafts for the model that it serves.

Usage: python -m tools.serve_vllm_drafted [--checkpoint FOLDER] [--checkpoints-dir FOLDER] [--tokens 8] [-- MORE …]

The model and the address are those of serve-vllm-local: VLLM_LOCAL_MODEL, VLLM_LOCAL_URL and the like. What a drafted
server says of prompt_logprobs is not to be trusted, so it is no server for a gateway that scores.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.command_line import fail
from latentforge.core.manifest import STEP_FOLDER
from latentforge.core.settings import SettingsError, load_settings
from latentforge.gateway.backends.vllm.command import vllm_command, vllm_environment
from latentforge.gateway.settings import GatewaySettings

DRAFTER = "latentforge.vllm.StudentDrafter"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


def drafted_command(settings: GatewaySettings, num_tokens: int, arguments: Sequence[str]) -> list[str]:
    """Program and arguments.

    Raises:
        SettingsError: a setting is missing, or no Python with vLLM is found.
    """
    speculative = {"method": "custom_class", "model": DRAFTER, "num_speculative_tokens": num_tokens}
    # A scoring teacher reads every prompt anew; whoever serves users need not.
    users = ["--enable-prefix-caching", "--speculative-config", json.dumps(speculative)]
    return [*vllm_command(settings), *users, *arguments]


def students(checkpoint: Path | None, checkpoints_dir: Path | None) -> dict[str, str]:
    """The drafter's variables for what was given; those of the environment stand where nothing was.

    Args:
        checkpoint: a run's folder, or the one of its newest checkpoint; drafts until the run of that name has published
            something in ``checkpoints_dir``.
        checkpoints_dir: folder that is watched for newer ones.

    Raises:
        SettingsError: it has no checkpoint, or it is not the one that would be taken.
    """
    found = {} if checkpoints_dir is None else {"LATENTFORGE_CHECKPOINTS": str(checkpoints_dir.absolute())}
    if checkpoint is None:
        return found
    place = checkpoint.absolute()
    is_step = STEP_FOLDER.fullmatch(place.name) is not None
    run = place.parent if is_step else place
    published = list_checkpoints(run)
    if not published:
        raise SettingsError(f"CHECKPOINT={checkpoint}: no step-00001200/ with a manifest.json is there")
    if is_step and place != published[-1]:
        raise SettingsError(
            f"CHECKPOINT={checkpoint} is not the newest of its run, which is {published[-1].name}; give that one, or "
            f"write {place.name} into a file {run.name}/pinned and give CHECKPOINTS_DIR={run.parent}"
        )
    return {**found, "LATENTFORGE_FALLBACK_RUN": str(run), "LATENTFORGE_RUN": run.name}


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs vLLM to its end, with a folder in which its processes leave their figures; its exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="vllm-metrics-") as folder,
        subprocess.Popen(command, env={MULTIPROCESS: folder, **environment}) as server,
    ):
        # A Ctrl-C of the terminal reaches it by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: server.send_signal(number))
        return server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the folder of a run, or of its newest checkpoint")
    parser.add_argument("--checkpoints-dir", type=Path, help="folder that is watched for newer ones")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of the longest draft")
    parser.add_argument("arguments", nargs="*", help="more of vLLM's own, after --")
    given = parser.parse_args()
    try:
        settings = load_settings(GatewaySettings)
        command = drafted_command(settings, given.tokens, given.arguments)
        environment = vllm_environment(settings, dict(os.environ)) | students(given.checkpoint, given.checkpoints_dir)
    except SettingsError as error:
        fail(str(error))
    sys.stderr.write(shlex.join(command) + "\n")
    return run(command, environment)


if __name__ == "__main__":
    sys.exit(main())

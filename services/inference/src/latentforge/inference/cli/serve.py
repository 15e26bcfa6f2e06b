"""inference serve: the service."""

from typing import Annotated

import typer

from latentforge.core.command_line import errors_reported
from latentforge.core.logs import configure_logging
from latentforge.core.settings import load_settings
from latentforge.inference.cli.options import Checkpoints, Run
from latentforge.inference.main import serve as run_server
from latentforge.inference.settings import InferenceSettings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (INFERENCE_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (INFERENCE_PORT).")] = None,
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Serve over REST until SIGTERM; a newer checkpoint is picked up without a restart."""
    # What is said of the settings themselves comes before the level that they ask for.
    configure_logging("inference")
    with errors_reported():
        settings = load_settings(
            InferenceSettings,
            inference_host=host,
            inference_port=port,
            checkpoints_dir=checkpoints,
            checkpoint_run=run,
        )
        configure_logging("inference", level=settings.log_level, json_lines=settings.log_json)
        run_server(settings)

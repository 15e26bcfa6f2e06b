"""What goes wrong while a request is answered, as the answer says it."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from latentforge.core.checkpoints import UnknownCheckpointError
from latentforge.core.http.disconnects import ClientGoneError
from latentforge.core.manifest import CheckpointError
from latentforge.inference.rest.errors import RestError
from latentforge.inference.rest.prompts import PromptError
from latentforge.model.engine.errors import (
    DeadlineError,
    EngineFullError,
    GenerationCancelledError,
    GenerationFailedError,
)
from latentforge.snapshots.registry import NothingServedError

logger = logging.getLogger(__name__)

_KNOWN: tuple[type[Exception], ...] = (
    PromptError,
    NothingServedError,
    CheckpointError,
    EngineFullError,
    DeadlineError,
    GenerationCancelledError,
    GenerationFailedError,
    ClientGoneError,
)


def rest_error_of(error: Exception) -> RestError:
    """The answer to what a request ran into; what nobody foresaw is logged."""
    match error:
        case RestError():
            return error
        case PromptError():
            return RestError(400, error.code, str(error), param=error.param)
        case UnknownCheckpointError():
            return RestError(404, "model_not_found", str(error), param="model")
        case CheckpointError():
            return RestError(409, "checkpoint_refused", str(error), param="model")
        case NothingServedError():
            return RestError(503, "no_checkpoint", str(error))
        case EngineFullError():
            return RestError(429, "queue_full", str(error), headers={"retry-after": str(error.retry_after)})
        case DeadlineError():
            return RestError(504, "deadline_exceeded", str(error))
        case GenerationCancelledError():
            return RestError(503, "shutting_down", str(error))
        case GenerationFailedError():
            return RestError(500, "generation_failed", str(error))
        case ClientGoneError():
            return RestError(499, "client_gone", "the client hung up")
    logger.error("answering failed", exc_info=error)
    return RestError(500, "internal_error", "the server failed; its log says why")


def install_failure_handlers(app: FastAPI) -> None:
    for kind in _KNOWN:
        app.add_exception_handler(kind, _on_failure)


async def _on_failure(_: Request, error: Exception) -> JSONResponse:
    return rest_error_of(error).response()

"""How a request ends without an answer."""


class EngineFullError(RuntimeError):
    """A bound of the queue is reached.

    Attributes:
        limit: the field of EngineLimits that is.
        message: which bound, with ``limit`` in it.
        retry_after: a guess when there is room again, whole seconds.
    """

    def __init__(self, limit: str, message: str, retry_after: int) -> None:
        super().__init__(f"{message}; try again in {retry_after} s")
        self.limit = limit
        self.message = message
        self.retry_after = retry_after


class DeadlineError(RuntimeError):
    """A request took longer than it may."""


class GenerationCancelledError(RuntimeError):
    """Nobody waits for the answer any more, or the engine takes no more requests."""


class GenerationFailedError(RuntimeError):
    """The model failed while it wrote or scored this text; the log has the traceback."""

"""Looks at the checkpoints folder again and again, in a thread beside vLLM's steps."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Refresher:
    """Calls ``refresh`` in a thread of its own until :meth:`close`.

    Even the first time: vLLM calls its drafter in torch's inference mode, which belongs to a thread, and tensors that
    are made in it cannot be written to outside. Between the first look and the first step vLLM may capture graphs of
    its kernels, which a model that is loaded onto the same GPU would break; so nothing is looked at then.

    Args:
        refresh: looks once; what it raises is logged, but for the first look's, which :meth:`start` raises.
        poll_seconds: between two looks.
    """

    def __init__(self, refresh: Callable[[], None], poll_seconds: float) -> None:
        self._refresh, self._poll_seconds = refresh, poll_seconds
        self._closed, self._looked, self._going = threading.Event(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="latentforge-checkpoints", daemon=True)

    def start(self) -> None:
        """Returns after the first look."""
        self._thread.start()
        self._looked.wait()
        if self._failure is not None:
            raise self._failure

    def go_on(self) -> None:
        """Looks again and again from now on."""
        self._going.set()

    def close(self) -> None:
        """Ends the thread, after the look that is under way."""
        self._closed.set()
        self._going.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._refresh()
        except Exception as error:
            self._failure = error
            return
        finally:
            self._looked.set()
        self._going.wait()
        while not self._closed.wait(self._poll_seconds):
            try:
                self._refresh()
            # A thread that died unseen would draft with old weights for ever.
            except Exception:
                logger.exception("the checkpoints folder could not be looked at; trying again")

"""An engine's loop in a thread of its own."""

import logging
import threading

from latentforge.model.engine.engine import Engine

logger = logging.getLogger(__name__)


class EngineThread:
    """Runs an engine from :meth:`start` until it is closed; sleeps while there is nothing to do."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Cancels all requests, tells everybody, and waits for the thread."""
        self.engine.close()
        if self._thread.is_alive():
            self._thread.join()
        else:
            # It was never started, or has ended: whoever still waits is told here.
            self.engine.run_once()

    def _loop(self) -> None:
        while True:
            try:
                if not self.engine.run_once() and not self.engine.wait():
                    return
            except Exception:
                logger.exception("the engine's loop failed; its requests fail, and it goes on")
                self._fail_all()

    def _fail_all(self) -> None:
        # A thread that died would leave everybody waiting for ever.
        try:
            self.engine.fail_all("the engine failed; its log says why")
        except Exception:
            logger.exception("requests could not be told")

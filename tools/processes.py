"""Child processes that never outlive whoever started them, and that say what they died of."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

_LEASH = Path(__file__).with_name("leash.py")
_TAIL_LINES = 20
_LOOK_EVERY = 0.2
_STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildError(RuntimeError):
    """A child that ended when it should not have, with the last lines of its log."""


class StoppedError(Exception):
    """The user or the system asked us to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Child:
    """A running command in a session of its own: a Ctrl-C in the terminal reaches only us, and we stop it in order."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None,
        env: Mapping[str, str],
        cwd: Path | None = None,
        leashed: bool = True,
    ) -> None:
        """Starts the command.

        Args:
            name: what errors call it.
            command: program and arguments.
            log: where stdout and stderr go; None leaves them on ours.
            env: variables besides our own.
            cwd: where it runs; None for where we do.
            leashed: end it when we are killed.
        """
        self.name = name
        self.log = log
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid() if leashed else 0)]
        output = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("wb")
        try:
            self._process = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env={**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def check(self) -> None:
        """Raises ChildError when the child has ended."""
        code = self.exit_code()
        if code is not None:
            raise ChildError(self.obituary(code))

    def obituary(self, code: int) -> str:
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} (pid {self.pid}) {cause}{self._last_words()}"

    def _last_words(self) -> str:
        if self.log is None:
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines:
            return f"; its log {self.log} is empty"
        return f"; the end of {self.log}:\n" + "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])

    def stop(self, grace: float) -> None:
        """SIGTERM to the child and everything it started, SIGKILL after ``grace`` seconds."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace)
        # Also when it ended in time: what it started may still be there.
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Children:
    """Starts children and stops those that are still there on the way out, the last started first.

    Args:
        logs: folder for their output.
        cwd: where they run; None for where we do.
        env: variables that they get besides our own.
        grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self, logs: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None, grace: float = 10.0
    ) -> None:
        self._logs = logs
        self._cwd = cwd
        self._env = dict(env or {})
        self._grace = grace
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _signals_held_back():
            for child in reversed(self._running):
                child.stop(self._grace)

    def start(self, name: str, command: Sequence[str], *, visible: bool = False, leashed: bool = True) -> Child:
        """Starts a command; its output goes to ``<logs>/<name>.log``, or to ours if it is ``visible``."""
        log = None if visible else self._logs / f"{name}.log"
        with _signals_held_back():
            child = Child(name, command, log=log, env=self._env, cwd=self._cwd, leashed=leashed)
            self._running.append(child)
        return child

    def check(self, *, besides: Child | None = None) -> None:
        """Raises ChildError when any child but ``besides`` has ended."""
        for child in self._running:
            if child is not besides:
                child.check()

    def finish(self, child: Child) -> None:
        """Waits for a child that ends by itself, while the others must live.

        Raises:
            ChildError: its exit code is not 0, or another one ended.
        """
        while (code := child.exit_code()) is None:
            self.check(besides=child)
            time.sleep(_LOOK_EVERY)
        if code != 0:
            raise ChildError(child.obituary(code))
        self._running.remove(child)

    def leave(self, child: Child) -> None:
        """Lets a child live on."""
        self._running.remove(child)

    def wait_until(self, ready: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Waits for ``ready`` while every child lives.

        Raises:
            ChildError: a child ended.
            TimeoutError: it took longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} took longer than {seconds:.0f} s")
            time.sleep(_LOOK_EVERY)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into StoppedError, so that every ``with`` block is left in order."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise StoppedError(number)

    before = {number: signal.signal(number, interrupt) for number in _STOPPING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A second Ctrl-C must not interrupt the stopping, nor a first one lose a child that was just started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

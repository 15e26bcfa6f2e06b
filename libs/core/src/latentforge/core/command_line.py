"""How command lines end: exit codes, and errors as one message on stderr instead of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from latentforge.core.settings import SettingsError

DONE = 0
FAILED = 1
# What argparse and typer exit with, too, for options that they refuse.
WRONG_USAGE = 2


@contextmanager
def errors_reported(*failures: type[Exception], usage: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Ends the process with one message where the block raises what a user can put right.

    A :class:`SettingsError` exits 2. Every other exception is a bug of ours and keeps its traceback.

    Args:
        failures: what exits 1.
        usage: what exits 2 besides; goes before ``failures`` for classes that are both.
    """
    wrong_usage: tuple[type[Exception], ...] = (SettingsError, *usage)
    try:
        yield
    except wrong_usage as error:
        fail(error, code=WRONG_USAGE)
    except failures as error:
        fail(error)


def fail(message: object, *, code: int = FAILED) -> NoReturn:
    """Writes ``error: <message>`` to stderr and raises SystemExit.

    Raises:
        SystemExit: always.
    """
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)

"""python -m tools.demo: the whole job; exit code 0 only if all of it worked."""

import sys

from rich.console import Console

from latentforge.core.command_line import DONE, errors_reported
from latentforge.core.settings import load_settings
from tools.demo.job import Demo
from tools.demo.preflight import PreflightError
from tools.demo.settings import DemoSettings
from tools.demo.watch import WatchError
from tools.processes import ChildError, StoppedError, stop_on_signals


def main() -> int:
    console = Console()
    # A pipe has no width of its own, and a table is read by eye.
    console.width = max(console.width, 100)
    try:
        with errors_reported(ChildError, WatchError, TimeoutError, usage=(PreflightError,)), stop_on_signals():
            Demo(load_settings(DemoSettings), console).run()
    except StoppedError as stopped:
        sys.stderr.write(f"demo: {stopped}; everything it started is stopped\n")
        return stopped.exit_code
    return DONE


if __name__ == "__main__":
    sys.exit(main())

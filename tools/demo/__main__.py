"""python -m tools.demo: the whole job; exit code 0 only if all of it worked."""

import sys

from rich.console import Console

from latentforge.core.settings import SettingsError, load_settings
from tools.demo.job import Demo
from tools.demo.preflight import PreflightError
from tools.demo.settings import DemoSettings
from tools.demo.watch import WatchError
from tools.processes import ChildError, StoppedError, stop_on_signals


def main() -> int:
    errors = Console(stderr=True)
    console = Console()
    # A pipe has no width of its own, and a table is read by eye.
    console.width = max(console.width, 100)
    try:
        with stop_on_signals():
            Demo(load_settings(DemoSettings), console).run()
    except StoppedError as stopped:
        errors.print(f"demo: {stopped}; everything it started is stopped", markup=False, highlight=False)
        return stopped.exit_code
    except (SettingsError, PreflightError, ChildError, WatchError, TimeoutError) as error:
        errors.print(f"demo: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

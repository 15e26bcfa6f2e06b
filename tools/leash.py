"""Runs a command that the kernel ends with SIGTERM when the process that started it is gone, however it went.

Usage: python leash.py PARENT_PID command args...    0 in place of the parent's pid leaves the command without a leash.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if parent:
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            sys.exit(f"leash: prctl failed: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent:
            sys.exit("leash: the parent is gone already")
    # Whoever starts us may hold signals back just then; the command must not inherit that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # The leash is kept by exec, so the command itself is on the leash.
    os.execvp(command[0], command)

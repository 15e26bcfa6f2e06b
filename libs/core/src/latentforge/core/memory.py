"""Memory that a process keeps to itself instead of asking for it anew, page by page."""

import ctypes
import os

# Of glibc's malloc.h; mallopt(3) says what they do.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The most that glibc takes; larger blocks are given back when they are freed, as before.
_LARGEST_BLOCK = 32 << 20
_KEPT = 256 << 20


def keep_freed_memory() -> bool:
    """Lets glibc's allocator keep up to 256 MB of freed memory instead of giving it back to the system at once.

    Every token makes and frees tensors of some hundred kilobytes (a row of logits, its shares, their sums). By default
    the allocator returns such blocks, and each one that is made anew is paid for page by page. Call it once, before
    threads that allocate; a variable of the environment that glibc reads (``MALLOC_TRIM_THRESHOLD_`` and its like) is
    somebody's own choice and leaves everything as it is.

    Returns:
        whether it was done; not with another allocator than glibc's.
    """
    if any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        # musl, macOS, Windows.
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_BLOCK), (_M_TRIM_THRESHOLD, _KEPT))
    return all(mallopt(number, value) == 1 for number, value in wanted)

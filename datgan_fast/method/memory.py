"""Keeps the C library from handing freed memory back to the kernel between the passes of a step on the CPU.

The fast step frees the clean graph before it builds the adversarial one. glibc returns such large blocks to the kernel, which
gives them back a page at a time.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)


@cache
def keep_freed_memory() -> bool:
    """Once per process: free memory up to 1 GiB stays with the process. DATGAN_FAST_KEEP_MEMORY=0 leaves malloc alone.

    Returns whether it was done; where the C library is not glibc there is nothing to do.
    """
    if os.environ.get("DATGAN_FAST_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 1 << 30) and mallopt(_MMAP_THRESHOLD, 32 << 20))

"""How much memory this process has had at most."""

import resource
import sys


def peak_memory() -> int:
    """In bytes, since the process began."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

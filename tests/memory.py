"""How much memory a part of a test takes, at most."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Fails if the process has more than so many beside what it has had before; nothing is measured where Linux is not."""
    if not STATUS.exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kilobytes("VmRSS")
    yield
    taken = (_kilobytes("VmHWM") - before) / 1000
    assert taken <= megabytes, f"{taken:.0f} MB"


def _kilobytes(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1])

"""The variants of csrc/cpu/rows.cpp and the compiler's flags for each, as CMakeLists.txt has them, the least first."""

import re
from pathlib import Path

VARIANTS = {
    name: flags.split()
    for name, flags in re.findall(
        r"add_rows\((\w+) ?([^)]*)\)", (Path(__file__).resolve().parents[1] / "CMakeLists.txt").read_text()
    )
    if name != "isa"
}

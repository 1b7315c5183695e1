"""Draws the speed tables of docs/performance.md, the README's small one and one plot from a result file.

    python benchmarks/report.py RESULT [--page docs/performance.md] [--readme README.md] [--plot docs/images/speed.png]

The tables replace what stands between each page's markers; every figure, and what it was measured on, is the file's.
Exit status 2 and one sentence where the file or a page does not serve; then neither page is changed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import record

BEGIN, END = "<!-- speed table -->", "<!-- /speed table -->"
REFERENCE = "reference"
PENALTIES = {"none": "no penalty", "r1+r2": "R1 + R2"}  # those that are not called by their name in capitals


def named(result: dict[str, Any], test: str) -> list[dict[str, Any]]:
    return [b for b in result["benchmarks"] if b["name"].startswith(test + "[")]


def columns(cells: list[dict[str, Any]]) -> list[str]:
    """Every provider of any cell, in the order in which they were measured."""
    return list(dict.fromkeys(name for cell in cells for name in cell["providers"]))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(result: dict[str, Any]) -> str:
    device = result["device"] if result["devices"] else f"{result['device']}, {result['threads']} threads"
    return f"{device}, torch {result['torch']}, {result['date'][:10]}"


def measured_on(result: dict[str, Any]) -> str:
    commit = (result["commit"] or "unknown")[:7] + (" with changes" if result["modified"] else "")
    return f"{machine(result)}, commit {commit}: `{result['command']}`"


def title(cell: dict[str, Any]) -> str:
    return cell["baseline"] + (" + DAT" if cell["dat"] else "")


def time(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['ms']:.1f}" + (f" ({figure['speedup']:.2f})" if "speedup" in figure else "")


def iteration_table(cells: list[dict[str, Any]]) -> str:
    names = columns(cells)
    precisions = list(cells[0]["floors"])
    header = ["iteration, ms", *names, *(f"floor {precision}" for precision in precisions)]
    rows = [
        [title(cell), *(time(cell["providers"].get(name)) for name in names)]
        + [f"{cell['floors'][precision]['ms']:.1f}" for precision in precisions]
        for cell in cells
    ]
    return table(header, rows)


def fastest(cell: dict[str, Any]) -> str:
    return min(cell["providers"], key=lambda name: cell["providers"][name]["ms"])


def cost_table(cells: list[dict[str, Any]]) -> str:
    """The reference beside the fastest provider."""
    calls = "launches" if "launches" in cells[0]["providers"][REFERENCE] else "operator_calls"
    keys = {"images_per_second": "images/s", "peak_mib": "peak memory, MiB", calls: calls.replace("_", " ")}
    rows = []
    for cell in cells:
        best = fastest(cell)
        pair = cell["providers"][REFERENCE], cell["providers"][best]
        rows.append([title(cell), best, *(" / ".join(f"{figure[key]:.0f}" for figure in pair) for key in keys)])
    return table(["reference / fastest", "fastest", *keys.values()], rows)


def penalty_name(cell: dict[str, Any]) -> str:
    return PENALTIES.get(cell["penalty"], cell["penalty"].upper())


def step_table(cells: list[dict[str, Any]]) -> str:
    names = columns(cells)
    rows = []
    for cell in cells:
        peaks = [f"{cell['providers'][name]['peak_mib']:.1f}" for name in names]
        row = "BatchNorm, no penalty" if cell["batch_norm"] else penalty_name(cell)
        rows.append([row, *(time(cell["providers"][name]) for name in names), " / ".join(peaks)])
    return table(["discriminator step with DAT, ms", *names, "peak memory, MiB"], rows)


def penalty_table(cells: list[dict[str, Any]]) -> str:
    """Each penalty alone, beside plain autograd."""
    rows = []
    for cell in cells:
        pair = list(cell["providers"].values())
        name = penalty_name(cell) + (", MLP critic" if cell["network"] == "mlp" else "")
        rows.append([name, *map(time, pair), " / ".join(f"{figure['peak_mib']:.1f}" for figure in pair)])
    return table(["penalty alone, ms", *columns(cells), "peak memory, MiB"], rows)


def iterations(result: dict[str, Any]) -> list[dict[str, Any]]:
    if not (cells := named(result, "test_iteration")):
        raise record.ResultError("the result has no iterations; run benchmarks/bench_iteration.py for it")
    return cells


def sizes(cell: dict[str, Any]) -> str:
    return f"width {cell['width']}, batch {cell['batch_size']} of {cell['channels']}x{cell['image_size']}x{cell['image_size']}"


def small_table(result: dict[str, Any]) -> str:
    """The README's: iterations with DAT, the reference beside the fused step and the fastest. Raises ResultError."""
    cells = [cell for cell in iterations(result) if cell["dat"]]
    rows = [
        [cell["baseline"], *(time(cell["providers"].get(name)) for name in (REFERENCE, "fused", fastest(cell)))]
        for cell in cells
    ]
    precisions = dict.fromkeys(cell["providers"][fastest(cell)]["precision"] for cell in cells)
    header = ["", "plain autograd", "fused", f"fastest ({', '.join(precisions)})"]
    said = f"Milliseconds an iteration with DAT, in brackets times as fast ({sizes(cells[0])}, {machine(result)}):"
    return f"{said}\n\n{table(header, rows)}"


def text(result: dict[str, Any], image: str) -> str:
    """The tables, the plot and what they were measured on. Raises ResultError."""
    cells = iterations(result)
    parts = [
        f"Networks of {sizes(cells[0])}, on {measured_on(result)}. In brackets: how many times as fast as "
        "the float32 reference beside it. Peak memory: beyond networks and data.",
        iteration_table(cells),
        f"![Time of an iteration with DAT, by baseline and provider, with its floor]({image})",
        cost_table(cells),
    ]
    for test, draw in (("test_discriminator_step", step_table), ("test_penalty", penalty_table)):
        if found := named(result, test):
            parts.append(draw(found))
    return "\n\n".join(parts)


def between_markers(page: Path, new: str) -> str:
    """The page's text with `new` between its markers. Raises ResultError."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise record.ResultError(f"{page} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def plot(result: dict[str, Any], path: Path) -> None:
    """Time of an iteration with DAT: a group of bars for every baseline, a bar for every provider, its floor a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = [cell for cell in named(result, "test_iteration") if cell["dat"]]
    names = columns(cells)
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    width = 0.85 / len(names)
    for i, name in enumerate(names):
        here = [(x, cell["providers"][name]) for x, cell in enumerate(cells) if name in cell["providers"]]
        places = [x + (i - (len(names) - 1) / 2) * width for x, _ in here]
        axes.bar(places, [figure["ms"] for _, figure in here], width, label=name, color=plt.get_cmap("tab10")(i))
        floors = [figure["floor_ms"] for _, figure in here]
        left, right = ([x + side * width / 2 for x in places] for side in (-1, 1))
        axes.hlines(floors, left, right, color="black", label="floor" if i == len(names) - 1 else None)
    axes.set_xticks(range(len(cells)), [title(cell) for cell in cells])
    axes.set_ylabel("ms per iteration")
    axes.set_title(f"{result['device']}, torch {result['torch']}, {result['date'][:10]}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--page", type=Path, default=record.ROOT / "docs" / "performance.md")
    parser.add_argument("--readme", type=Path, default=record.ROOT / "README.md")
    parser.add_argument("--plot", type=Path, default=record.ROOT / "docs" / "images" / "speed.png")
    options = parser.parse_args(arguments)
    try:
        result = record.read(options.result)
        image = os.path.relpath(options.plot, options.page.parent)
        pages = {
            options.page: between_markers(options.page, text(result, image)),
            options.readme: between_markers(options.readme, small_table(result)),
        }
        for path, page in pages.items():
            path.write_text(page)
        plot(result, options.plot)
    except (record.ResultError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()

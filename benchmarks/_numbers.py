"""Medians, spreads, slopes, and tables of them that can be pasted into a README."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(numbers: Sequence[float], digits: int) -> str:
    """Write the median, and the least and the greatest number."""
    middle = f"{statistics.median(numbers):.{digits}f}"
    if len(numbers) == 1:
        return middle
    return f"{middle} ({min(numbers):.{digits}f}-{max(numbers):.{digits}f})"


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Give the slope of the least-squares line; None where there are not two different places."""
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table whose columns stand below each other in a terminal too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )

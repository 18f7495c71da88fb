"""A small plot of lines over the number of ranks, as an SVG that can be read on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 800, 400
LEFT, RIGHT, TOP, BOTTOM = 48, 258, 52, 52
# Midway between black and white. An SVG in a page cannot know that page's colours: prefers-color-scheme speaks of the
# system, and GitHub's theme may be another one.
TEXT, GRID = "#768390", "#76839040"
FONT = "font-family='-apple-system, BlinkMacSystemFont, Segoe UI, Noto Sans, Helvetica, Arial, sans-serif'"
LABEL_HEIGHT = 17


@dataclass(frozen=True)
class Line:
    """One line: at each x the median, the least and the greatest y."""

    title: str
    colour: str
    points: Sequence[tuple[float, float, float, float]]
    dashed: bool = False


def plot(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Draw the lines; x is logarithmic (base 2), y starts at 0."""
    ticks = sorted({x for line in lines for x, *_ in line.points})
    step = _step(max(high for line in lines for *_, high in line.points))
    top = step * math.ceil(max(high for line in lines for *_, high in line.points) / step)
    low, high = math.log2(ticks[0]), math.log2(ticks[-1])

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((math.log2(x) - low) / (high - low) if high > low else 0.5)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top

    name = escape(title, quote=True)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}'",
        f"  role='img' aria-label='{name}' {FONT} font-size='13' fill='{TEXT}'>",
        f"<title>{escape(title)}</title>",
        f"<text x='{LEFT}' y='22' font-size='16' font-weight='600'>{escape(title)}</text>",
        f"<text x='{LEFT}' y='41' font-size='12'>{escape(y_title)}</text>",
        f"<text x='{(LEFT + WIDTH - RIGHT) / 2:.1f}' y='{HEIGHT - 12}' text-anchor='middle'>{escape(x_title)}</text>",
    ]
    for number in range(round(top / step) + 1):
        y = place_y(number * step)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='{GRID if number else TEXT}'/>")
        parts.append(f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{number * step:g}</text>")
    parts += [f"<text x='{place_x(x):.1f}' y='{HEIGHT - BOTTOM + 19}' text-anchor='middle'>{x:g}</text>" for x in ticks]
    for line in lines:
        corners = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y, *_ in line.points)
        dash = " stroke-dasharray='6 4'" if line.dashed else ""
        parts.append(f"<g stroke='{line.colour}' fill='none' stroke-width='2.5' stroke-linejoin='round'>")
        parts.append(f"<polyline points='{corners}'{dash}/>")
        for x, y, least, most in line.points:
            spread = f"M{place_x(x):.1f} {place_y(least):.1f}V{place_y(most):.1f}"
            parts.append(f"<path d='{spread}' stroke-width='1.2'/>")
            parts.append(f"<circle cx='{place_x(x):.1f}' cy='{place_y(y):.1f}' r='3' fill='{line.colour}'/>")
        parts.append("</g>")
    ends = [place_y(line.points[-1][1]) for line in lines]
    for line, end, y in zip(lines, ends, _apart(ends), strict=True):
        x, last = place_x(line.points[-1][0]), line.points[-1][1]
        # The label may have had to make room for others: a thin line leads to it.
        parts.append(f"<path d='M{x + 5:.1f} {end:.1f}L{x + 18:.1f} {y:.1f}' stroke='{line.colour}' fill='none'/>")
        parts.append(
            f"<text x='{x + 22:.1f}' y='{y + 4:.1f}' fill='{line.colour}' font-weight='600'>"
            f"{last:.1f} {escape(line.title)}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _step(most: float) -> float:
    """Choose a round distance of the grid's lines: four to eight of them."""
    rough = most / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)


def _apart(places: Sequence[float]) -> list[float]:
    """Move labels apart, in their order, and up where they would leave the plot."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = list(places)
    for before, index in pairwise(order):
        found[index] = max(found[index], found[before] + LABEL_HEIGHT)
    limit: float = HEIGHT - BOTTOM + 8
    for index in reversed(order):
        found[index] = min(found[index], limit)
        limit = found[index] - LABEL_HEIGHT
    return found

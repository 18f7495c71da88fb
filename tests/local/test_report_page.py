"""The page of a report in a real browser: everything is drawn, in the light and in the dark, on small screens and on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, wait_for
from made_up_reports import eventful, evil
from run_helpers import Place

from batchlet.run_report.advice import advise
from batchlet.run_report.page import page

pytest.importorskip("bokeh")

# Of each plot: its name, how many pixels of it are coloured, and by how much its canvases stand out on the right.
DRAWN = """
const found = [];
for (const drawing of document.querySelectorAll(".drawing")) {
    const box = drawing.getBoundingClientRect(), roots = [drawing];
    let colours = 0, out = 0;
    while (roots.length) {
        const root = roots.pop();
        for (const element of root.querySelectorAll("*")) {
            if (element.shadowRoot) { roots.push(element.shadowRoot); }
            if (element.tagName !== "CANVAS" || !element.width || !element.height) { continue; }
            const place = element.getBoundingClientRect();
            out = Math.max(out, place.right - box.right, place.bottom - box.bottom);
            const data = element.getContext("2d").getImageData(0, 0, element.width, element.height).data;
            for (let i = 0; i < data.length; i += 4) {
                const pixel = [data[i], data[i + 1], data[i + 2]];
                if (data[i + 3] && Math.max(...pixel) - Math.min(...pixel) > 40) { colours++; }
            }
        }
    }
    found.push([drawing.getAttribute("aria-label"), colours, out]);
}
return found;
"""
# The least contrast of a text with what it stands on, as WCAG reckons it; plots are turned around as a whole.
CONTRAST = """
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const part = value => { value /= 255; return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
let least = [99, ""];
for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest(".plot, script, style, noscript")) { continue; }
    let under = element, back = null;
    for (; under && !back; under = under.parentElement) {
        const colour = numbers(getComputedStyle(under).backgroundColor);
        if (colour.length === 3 || colour[3] > 0.9) { back = colour; }
    }
    const [one, two] = [light(numbers(getComputedStyle(element).color)), light(back)];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < least[0]) { least = [ratio, element.outerHTML.slice(0, 80)]; }
}
return least;
"""
LIT = "return getComputedStyle(document.documentElement).backgroundColor"
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"
# Everything that a reader can open is open.
OPEN = "for (const one of document.querySelectorAll('details')) { one.open = true; } return 0"
REPORTS = {
    "four": eventful(),
    "five hundred": eventful(nodes=50, workers=500, samples=720, seconds=20_000.0, state="done"),
    "evil": evil(),
}
for _node in REPORTS["four"]["nodes"].values():
    _node["gpu"] = [0.5 for _ in _node["at"]]
# In each of them: CPUs, memory, what was sent, both by node, tasks, workers, the start; and GPUs in one.
PLOTS = {"four": 9, "five hundred": 8, "evil": 8}


@pytest.fixture(scope="module")
def seen() -> Iterator[Browser]:
    place = Place()
    try:
        with browser(place) as shown:
            yield shown
    finally:
        place.close()


@pytest.fixture(params=REPORTS)
def opened(request: pytest.FixtureRequest, seen: Browser, tmp_path: Path) -> tuple[Browser, int]:
    """The page of a report in the browser, and how many plots it has."""
    made: dict[str, Any] = {**REPORTS[request.param]}
    made["advice"] = advise(made) or made["advice"]
    file = tmp_path / "report.html"
    file.write_text(page(made))
    assert file.stat().st_size < 3_000_000
    seen.show()
    seen.open("about:blank")
    seen.console()
    seen.requests()
    seen.open(file.as_uri())
    idle = "return window.Bokeh !== undefined && Bokeh.documents.length === 1 && Bokeh.documents[0].is_idle"
    wait_for(lambda: bool(seen.run(idle)), "the plots", seen)
    return seen, PLOTS[request.param]


def drawn(shown: Browser) -> list[tuple[str, int, float]]:
    return [tuple(one) for one in shown.run(DRAWN)]


def test_everything_is_drawn_and_nothing_reaches_out(opened: tuple[Browser, int]) -> None:
    """In light, in the dark, on a small screen and on paper; nobody's text becomes more than text."""
    shown, plots = opened
    wait_for(lambda: all(colours > 200 for _, colours, _ in drawn(shown)), "colours in all plots", shown)
    assert len(drawn(shown)) == plots
    assert shown.run("return document.querySelectorAll('main b, iframe, form, img').length") == 0
    problems = [line for line in shown.console() if not re.match(r"(INFO|DEBUG) ", line)]
    assert problems == []
    asked = [address for address in shown.requests() if not address.startswith(("data:", "about:"))]
    assert [address.rpartition("/")[2] for address in asked] == ["report.html"]
    assert (
        shown.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )

    shown.run(OPEN)
    assert shown.run(LIT) == "rgb(255, 255, 255)"
    assert shown.run(CONTRAST)[0] >= 4.5, shown.run(CONTRAST)
    shown.show(dark=True)
    wait_for(lambda: shown.run(LIT) == "rgb(21, 23, 26)", "a dark page", shown)
    assert shown.run(CONTRAST)[0] >= 4.5, shown.run(CONTRAST)
    assert "invert" in shown.run("return getComputedStyle(document.querySelector('.plot')).filter")

    shown.show(width=390, height=800)
    wait_for(lambda: all(out <= 1 for *_, out in drawn(shown)), "plots as narrow as the screen", shown)
    across, there = shown.run(WIDTHS)
    assert across <= there

    # On paper, with the plots as they were drawn for a wide screen.
    shown.show(width=1400)
    wide = "return document.querySelector('.drawing').clientWidth > 1000"
    wait_for(lambda: bool(shown.run(wide)) and all(out <= 1 for *_, out in drawn(shown)), "wide plots", shown)
    assert len(shown.printed()) > 20_000
    # That was told of printing, by the page's own script; now the same layout, to be measured.
    shown.show(media="print", dark=True, width=688)
    assert shown.run(LIT) == "rgb(255, 255, 255)"
    assert shown.run("return getComputedStyle(document.querySelector('.plot')).filter") == "none"
    assert [one for one in drawn(shown) if one[2] > 1 or one[1] <= 200] == []
    across, there = shown.run(WIDTHS)
    assert across <= there

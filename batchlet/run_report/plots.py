"""The plots of a report's page, by Bokeh, which Dask's dashboard needs as well; this module needs it when a plot is made.

Colours are those for light paper; the page turns them around where the reader's screen is dark. Legends, titles and tables are
the page's own: text in a plot neither wraps nor can be read aloud.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .summary import Course, NodeUse, course, rate, total
from .wording import cut, size, span_of

__all__ = ["Plot", "bokeh_version", "draw", "embed"]

_INK, _FAINT = "#444444", "#dddddd"
_BLUE, _RED, _GREEN, _PURPLE = "#0072b2", "#c44601", "#00805c", "#8a3b8f"
# Six lines that differ in lightness as well.
_LINES = ("#0072b2", "#56a8dc", "#00805c", "#c44601", "#e08a00", "#8a3b8f")
_HEIGHT = 240
# Events that are marked, groups and processes that are shown.
_EVENTS, GROUPS, PROCESSES = 60, 12, 8
# Points of one line among several.
_POINTS = 360
_KINDS = {"failure": _RED, "worker": _RED, "agent": _RED, "node": _RED}


@dataclass
class Plot:
    """A plot, and what the page says beside it.

    Parameters
    ----------
    figure : object
        Bokeh's figure.
    legend : list of tuple of str
        Colour and text of what is drawn.
    """

    figure: Any
    legend: list[tuple[str, str]] = field(default_factory=list)


def bokeh_version() -> str | None:
    """Version of Bokeh, if there is one that these plots can be made with."""
    try:
        import bokeh
        import bokeh.plotting
    except ImportError:
        return None
    version = str(bokeh.__version__)
    return version if version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 3 else None


def embed(plots: Mapping[str, Plot]) -> tuple[list[str], dict[str, str]]:
    """Give the scripts that draw, Bokeh's own first, and for each plot the element in which it comes to stand."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    library = [str(script) for script in Resources(mode="inline", components=["bokeh"], minified=True).js_raw]
    script, places = components({name: plot.figure for name, plot in plots.items()}, wrap_script=False)
    return [*library, str(script)], {name: str(place) for name, place in places.items()}


def draw(report: Mapping[str, Any], uses: Sequence[NodeUse]) -> dict[str, Plot]:
    """Draw what there is to draw.

    Parameters
    ----------
    report : mapping
        The report.
    uses : sequence of NodeUse
        Its nodes, the busiest first.

    Returns
    -------
    dict of str to Plot
        Of "cpu", "memory", "node_cpu", "node_memory", "traffic", "gpu", "workers", "groups" and "start" those for which there
        is something.
    """
    from bokeh.models import Range1d

    unit, seconds = _unit(span_of(report))
    times = Range1d(0, max(span_of(report), 0.001) / seconds)
    page = _Page(report, times, unit, seconds)
    plots: dict[str, Plot] = {}
    for name, made in (
        ("cpu", page.cpus),
        ("memory", page.memory),
        ("gpu", page.gpus),
        ("traffic", page.traffic),
        ("groups", page.groups),
        ("workers", page.workers),
        ("start", page.start),
    ):
        if (plot := made()) is not None:
            plots[name] = plot
    if len(uses) > 1:
        shown = list(uses) if len(uses) <= len(_LINES) else [*uses[:3], *uses[-3:]]
        for name, key in (("node_cpu", "cpu"), ("node_memory", "used")):
            if (plot := page.nodes([use.name for use in shown], key)) is not None:
                plots[name] = plot
    return plots


class _Page:
    """One report's plots, which share the axis of time: zooming in one zooms in all."""

    def __init__(self, report: Mapping[str, Any], times: Any, unit: str, seconds: float) -> None:
        self._report = report
        self._times = times
        self._unit = unit
        self._seconds = seconds

    def cpus(self) -> Plot | None:
        """CPUs busy on all nodes, beside those granted and the tasks that were executing."""
        nodes = self._report["nodes"]
        busy, tasks = total(nodes, "cpu"), total(nodes, "tasks")
        if not busy:
            return None
        granted = sum(node["cpus"] for node in nodes.values())
        plot = self._over_time(max(granted, busy.peak, min(tasks.peak, 2 * granted)), "CPUs")
        self._area(plot, busy, _BLUE, "CPUs busy")
        self._line(plot, tasks, _GREEN, "tasks executing")
        self._level(plot, granted, f"CPUs granted ({granted:g})")
        self._events(plot)
        return plot

    def memory(self) -> Plot | None:
        """Memory of the workers on all nodes, beside their limits and what was on disk."""
        nodes = self._report["nodes"]
        used, spilled = total(nodes, "used"), total(nodes, "spilled")
        if not used:
            return None
        granted = sum(node["memory"] for node in nodes.values())
        scale, unit = _scale(max(granted, used.peak, spilled.peak))
        plot = self._over_time(max(granted, used.peak, spilled.peak) / scale, unit)
        self._area(plot, used, _BLUE, "memory of the workers", scale)
        if spilled.peak:
            self._line(plot, spilled, _PURPLE, "data on disk", scale)
        self._level(plot, granted / scale, f"memory granted ({size(granted)})")
        self._events(plot)
        return plot

    def gpus(self) -> Plot | None:
        """GPUs busy on all nodes."""
        busy = total(self._report["nodes"], "gpu")
        if not busy:
            return None
        plot = self._over_time(max(1.0, busy.peak), "GPUs")
        self._area(plot, busy, _GREEN, "GPUs busy")
        self._events(plot)
        return plot

    def traffic(self) -> Plot | None:
        """Bytes that the workers sent, per second."""
        sent = rate(total(self._report["nodes"], "sent"))
        if not sent.peak:
            return None
        scale, unit = _scale(sent.peak)
        plot = self._over_time(sent.peak / scale, f"{unit}/s")
        self._area(plot, sent, _PURPLE, "sent by the workers", scale)
        return plot

    def nodes(self, names: Sequence[str], key: str) -> Plot | None:
        """CPUs or memory of some nodes, as parts of what each was granted, so that unlike nodes compare."""
        plot = self._over_time(100, "%")
        granted = "cpus" if key == "cpu" else "memory"
        for name, colour in zip(names, _LINES, strict=False):
            node = self._report["nodes"][name]
            if len(found := course(node, key)) and node[granted] > 0:
                self._line(plot, found.thinned(_POINTS), colour, cut(name, 40), node[granted] / 100)
        return plot if plot.legend else None

    def groups(self) -> Plot | None:
        """The groups of tasks that took longest: seconds of computing, and of fetching what they needed."""
        groups = [group for group in self._report["task_groups"] if group["seconds"] + group["transfer_seconds"] > 0]
        groups = groups[:GROUPS]
        if not groups:
            return None
        unit, seconds = _unit(max(group["seconds"] + group["transfer_seconds"] for group in groups))
        names = [_name(group["name"]) for group in groups]
        plot = Plot(self._bars(names, f"{unit} of threads"))
        rows = list(range(len(groups)))
        computed = [group["seconds"] / seconds for group in groups]
        whole = [(group["seconds"] + group["transfer_seconds"]) / seconds for group in groups]
        texts = {"name": names, "tasks": [group["tasks"] for group in groups]}
        for left, right, colour, text in (
            ([0] * len(rows), computed, _BLUE, "in tasks"),
            (computed, whole, _PURPLE, "fetching"),
        ):
            data = {"y": rows, "left": left, "right": right, **texts}
            plot.figure.hbar(
                y="y", left="left", right="right", height=0.7, source=_source(data), fill_color=colour, line_color=None
            )
            plot.legend.append((colour, text))
        _hover(plot.figure, [("group", "@name"), ("tasks", "@tasks")])
        return plot

    def workers(self) -> Plot | None:
        """Each worker as a point: how busy, and how full at its fullest."""
        rows = [
            (
                _name(name),
                worker["cpu_seconds"] / seconds,
                worker["memory_peak"] / worker["memory_limit"],
                worker["restarts"],
            )
            for name, worker in self._report["workers"].items()
            if worker["memory_limit"] > 0 and (seconds := self._time_of(worker) * worker["threads"]) > 0
        ][:5000]
        if len(rows) < 2:
            return None
        plot = Plot(self._figure("CPUs busy, %", "memory peak, % of the limit"))
        for again, colour, text in ((False, _BLUE, "worker"), (True, _RED, "worker that was started anew")):
            chosen = [row for row in rows if bool(row[3]) == again]
            if chosen:
                data = {
                    "name": [row[0] for row in chosen],
                    "x": [round(100 * row[1], 1) for row in chosen],
                    "y": [round(100 * row[2], 1) for row in chosen],
                }
                plot.figure.scatter(
                    "x", "y", source=_source(data), size=8, fill_color=colour, fill_alpha=0.5, line_color=colour
                )
                plot.legend.append((colour, text))
        _hover(plot.figure, [("worker", "@name"), ("busy", "@x %"), ("peak", "@y %")])
        plot.figure.x_range.update(start=0, end=max(104, *(104 * row[1] for row in rows)))
        plot.figure.y_range.update(start=0, end=max(104, *(104 * row[2] for row in rows)))
        return plot

    def start(self) -> Plot | None:
        """What the processes that were ready last did, and when."""
        processes = {name: events for name, events in self._report["timeline"].items() if events}
        slowest = sorted(processes, key=lambda name: -max(at for _, at in processes[name]))[:PROCESSES]
        if not slowest:
            return None
        plot = Plot(self._bars([_name(name) for name in slowest], "seconds"))
        rows = [(row, event, at) for row, name in enumerate(slowest) for event, at in processes[name]]
        spans = [[at for _, at in processes[name]] for name in slowest]
        plot.figure.hbar(
            y=list(range(len(slowest))), left=[min(span) for span in spans], right=[max(span) for span in spans], height=0.12,
            fill_color=_BLUE, line_color=None,
        )  # fmt: skip
        data = {"y": [row[0] for row in rows], "x": [row[2] for row in rows], "what": [_name(row[1]) for row in rows]}
        points = plot.figure.scatter("x", "y", source=_source(data), size=10, fill_color=_BLUE, line_color="white")
        _hover(plot.figure, [("", "@what, @x{0.00} s")], points)
        return plot

    def _time_of(self, worker: Mapping[str, Any]) -> float:
        end = span_of(self._report) if worker["went"] is None else worker["went"]
        return float(end - max(worker["came"], self._report["time"]["ready"] or 0.0))

    def _figure(self, across: str, up: str, **options: Any) -> Any:
        from bokeh.plotting import figure

        made = figure(
            height=_HEIGHT, sizing_mode="stretch_width", tools="pan,box_zoom,reset,save", x_axis_label=across, y_axis_label=up,
            background_fill_color=None, border_fill_color=None, outline_line_color=None, output_backend="canvas", **options,
        )  # fmt: skip
        made.toolbar.logo = None
        made.toolbar.autohide = True
        made.grid.grid_line_color = _FAINT
        made.axis.axis_line_color = made.axis.major_tick_line_color = _INK
        made.axis.minor_tick_line_color = None
        made.axis.major_label_text_color = made.axis.axis_label_text_color = _INK
        made.axis.major_label_text_font_size = made.axis.axis_label_text_font_size = "12px"
        made.axis.axis_label_text_font_style = "normal"
        return made

    def _over_time(self, top: float, what: str) -> Plot:
        from bokeh.models import Range1d

        heights = Range1d(0, 1.08 * top if top > 0 else 1)
        return Plot(self._figure(f"{self._unit} since the start", what, x_range=self._times, y_range=heights))

    def _bars(self, names: Sequence[str], across: str) -> Any:
        from bokeh.models import Range1d

        made = self._figure(across, "", y_range=Range1d(len(names) - 0.4, -0.6))
        made.height = 70 + 26 * len(names)
        made.yaxis.ticker = list(range(len(names)))
        made.yaxis.major_label_overrides = {number: cut(name, 28) for number, name in enumerate(names)}
        made.yaxis.axis_label = None
        made.ygrid.grid_line_color = None
        made.x_range.start = 0
        return made

    def _data(self, line: Course, scale: float) -> dict[str, list[float]]:
        return {
            "x": [float(f"{at / self._seconds:.6g}") for at in line.at],
            "y": [float(f"{value / scale:.5g}") for value in line.values],
        }

    def _area(self, plot: Plot, line: Course, colour: str, text: str, scale: float = 1.0) -> None:
        source = _source(self._data(line, scale))
        plot.figure.varea(x="x", y1=0, y2="y", source=source, fill_color=colour, fill_alpha=0.3)
        self._drawn(plot, source, colour, text)

    def _line(self, plot: Plot, line: Course, colour: str, text: str, scale: float = 1.0) -> None:
        if line:
            self._drawn(plot, _source(self._data(line, scale)), colour, text)

    def _drawn(self, plot: Plot, source: Any, colour: str, text: str) -> None:
        drawn = plot.figure.line("x", "y", source=source, line_color=colour, line_width=1.5)
        if len(source.data["x"]) == 1:
            plot.figure.scatter("x", "y", source=source, size=6, fill_color=colour, line_color=None)
        _hover(plot.figure, [(_name(text), f"@y{{0.0}} after @x{{0.0}} {self._unit}")], drawn)
        plot.legend.append((colour, text))

    def _level(self, plot: Plot, height: float, text: str) -> None:
        from bokeh.models import Span

        plot.figure.add_layout(
            Span(location=height, dimension="width", line_color=_INK, line_dash="dashed", line_width=1.5)
        )
        plot.legend.append((_INK, text))

    def _events(self, plot: Plot) -> None:
        """Mark the events: a line over the whole height, and at its top a point that tells."""
        from bokeh.models import Span

        events = [event for event in self._report["events"] if event["kind"] != "block"][:_EVENTS]
        if not events:
            return
        colours = [_KINDS.get(event["kind"], _INK) for event in events]
        xs = [event["at"] / self._seconds for event in events]
        for x, colour in zip(xs, colours, strict=True):
            plot.figure.add_layout(
                Span(location=x, dimension="height", line_color=colour, line_width=1, line_alpha=0.6)
            )
        texts = [_name(event["text"], 120) for event in events]
        data = {"x": xs, "y": [plot.figure.y_range.end / 1.04] * len(xs), "colour": colours, "text": texts}
        drawn = plot.figure.scatter(
            "x", "y", source=_source(data), size=9, marker="inverted_triangle", fill_color="colour", line_color=None
        )
        _hover(plot.figure, [("", "@text")], drawn)
        plot.legend.append((_RED if _RED in colours else _INK, "events"))


def _hover(figure: Any, tips: Sequence[tuple[str, str]], drawn: Any = None) -> None:
    from bokeh.models import HoverTool

    options = {} if drawn is None else {"renderers": [drawn]}
    tool = HoverTool(tooltips=list(tips), **options)
    if hasattr(tool, "visible"):
        tool.visible = False
    figure.add_tools(tool)


def _source(data: Mapping[str, Sequence[Any]]) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(dict(data))


def _name(text: str, most: int = 40) -> str:
    """Make a text fit for a plot, in which Bokeh would take some signs for a formula, a column or a field."""
    text = cut(text, most)
    for sign in ("$$", "\\(", "\\["):
        text = text.replace(sign, f"{sign[0]}\u200b{sign[1]}")
    return text


def _unit(seconds: float) -> tuple[str, float]:
    """Choose the unit of an axis of time, and its length in seconds."""
    for least, unit, length in ((7200.0, "hours", 3600.0), (180.0, "minutes", 60.0)):
        if seconds >= least:
            return unit, length
    return "seconds", 1.0


def _scale(amount: float) -> tuple[float, str]:
    """Choose the unit of an axis of memory: its bytes, and its name."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB")):
        if amount >= 2 * 1024**power:
            return float(1024**power), unit
    return 1024.0, "KiB"

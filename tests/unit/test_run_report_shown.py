"""A report in the terminal and as a page: whatever it says, at any width, and with nothing of it obeyed."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import json
import re
import stat
import sys
import unicodedata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_up_reports import HOSTILE, eventful, evil, report

import batchlet
from batchlet import cli
from batchlet.errors import UsageError
from batchlet.run_report import page as page_module
from batchlet.run_report import plots
from batchlet.run_report.cleaning import cleaned, printable
from batchlet.run_report.page import page
from batchlet.run_report.reading import departure, read
from batchlet.run_report.summary import Course, course, rate, total
from batchlet.run_report.text import text
from batchlet.run_report.wording import asked_time, clock, moment, outcome

SCHEMA = json.loads((Path(batchlet.__file__).parent / "run_report" / "schema.json").read_text())
EXTREMES = {
    "nothing": report(nodes=1, workers=0, samples=0, seconds=0.0),
    "no samples": report(workers=1, nodes=1, samples=0, seconds=2.0),
    "one sample": report(workers=1, nodes=1, samples=1, seconds=5.0),
    "four": eventful(),
    "under way": eventful(state="running"),
    "many": eventful(nodes=50, workers=500, samples=720, seconds=20_000.0),
}


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Anything that a schema allows, of those words that ours uses."""
    if "anyOf" in schema:
        return st.one_of([from_schema(one) for one in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if isinstance(schema.get("type"), list):
        return st.one_of([from_schema({**schema, "type": kind}) for kind in schema["type"]])
    kind = schema["type"]
    if kind == "object" and "properties" in schema:
        return st.fixed_dictionaries({name: from_schema(one) for name, one in schema["properties"].items()})
    if kind == "object":
        return st.dictionaries(st.text(max_size=8), from_schema(schema["additionalProperties"]), max_size=3)
    if kind == "array" and "prefixItems" in schema:
        return st.tuples(*map(from_schema, schema["prefixItems"])).map(list)
    if kind == "array":
        return st.lists(from_schema(schema["items"]), max_size=3)
    number = st.integers(schema.get("minimum", -(10**6)), 10**15)
    return {
        "string": st.text(max_size=12) | st.just(HOSTILE),
        "integer": number,
        "number": number | st.floats(-1e18, 1e18),
        "null": st.none(),
    }[kind]


def columns(line: str) -> int:
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in line)
    return len(line) + wide


# The terminal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in EXTREMES if kind != "many"])
def test_these_reports_are_in_order(kind):
    jsonschema.validate(EXTREMES[kind], SCHEMA)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("kind", EXTREMES)
def test_no_line_is_wider_than_the_terminal(kind, width):
    made = EXTREMES[kind]
    shown = text(made, width=width)
    assert max(columns(line) for line in shown.splitlines()) <= width
    assert outcome(made).split(":")[0] in " ".join(shown.split())
    assert "\x1b" not in shown
    assert text(made, width=width, signs=False).isascii()
    assert re.sub(r"\x1b\[\d+m", "", text(made, width=width, colours=True)) == shown


def test_what_there_is_to_say_is_said():
    shown = text({**EXTREMES["four"], "advice": [{"about": "cpu", "text": "Use more."}]}, width=100)
    for words in (
        "slurm job 4242.0: 6 ranks on 2 nodes, 4 workers x 2 threads x 4.00 GiB",
        "failed after 1 h 0 min: ClusterLostError, exit code 81",
        "CPUs 79 % busy, memory peak 93 % (worker 2), 3.00 GiB spilled",
        "* Use more.",
        "0:24:00 worker 2 was killed by signal 9 (n1)",
        "SLURM_MEM_PER_CPU x 4 CPUs",
        "read_csv",
        "Unmanaged memory use is high",
        "12 not kept",
        "distributed 2026.8.0",
    ):
        assert words in shown
    assert "the end was not seen" in text(EXTREMES["under way"])


def test_a_report_says_nothing_to_the_terminal_itself():
    made = evil()
    jsonschema.validate(json.loads(json.dumps(made)), SCHEMA)
    shown = text(made, width=80)
    assert set(shown) & set("\x1b\0\r\u202e\ud800") == set()
    assert shown.encode()
    assert "\\x1b[31m" in shown


def test_nodes_of_other_jobs_are_not_counted_as_the_runs_own():
    made = json.loads(json.dumps(EXTREMES["four"]))
    made["nodes"]["n2"]["figures"] = {}
    assert "slurm job 4242.0: 6 ranks on 1 node, 1 node that joined, 4 workers x 2 threads" in text(made, width=200)


@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_figure_that_is_wider_than_the_terminal_is_shown(width):
    """Beside an indent that leaves no room `textwrap` goes on for ever."""
    made = json.loads(json.dumps(EXTREMES["four"]))
    for node in made["nodes"].values():
        node["figures"] = {"name of a figure": {"value": "0123456789" * 10, "source": " }x yz"}}
    shown = text(made, width=width)
    assert "0123456789" * 10 in "".join(line.strip() for line in shown.splitlines())
    assert "yz" in shown


@settings(max_examples=40, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(from_schema(SCHEMA), st.sampled_from([20, 60, 200]))
def test_whatever_the_schema_allows_can_be_shown(made, width):
    assert departure(json.loads(json.dumps(made)), SCHEMA) is None
    assert text(made, width=width).encode()
    bare = page_module._content(cleaned(made), page_module.node_uses(cleaned(made)))
    assert bare["outcome"] == outcome(cleaned(made))


# The page ----------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """What a browser sees of a page: its elements, their texts, and its scripts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._in = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words += data


@pytest.fixture(scope="module")
def pages() -> dict[str, Reader]:
    pytest.importorskip("bokeh")
    return {kind: Reader(page(made)) for kind, made in {**EXTREMES, "evil": evil()}.items()}


@pytest.mark.parametrize("kind", [*EXTREMES, "evil"])
def test_a_page_runs_its_own_scripts_alone_and_reaches_out_for_nothing(pages, kind):
    seen = pages[kind]
    (policy,) = [value for name, value in seen.attributes if name == "content" and value and "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    there = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in seen.scripts}
    assert there == allowed
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "unsafe-eval" not in policy
    # Nothing of the report became an element or an attribute.
    handlers = [name for name, _ in seen.attributes if name.startswith("on")]
    assert handlers == []
    assert not {"b", "iframe", "img", "object", "form"} & set(seen.tags)
    assert [value for name, value in seen.attributes if name in ("src", "href")] == ["data:,"]


def test_hostile_text_is_there_to_be_read(pages):
    words = pages["evil"].words
    assert "\\x1b[31m</script></style><script>alert(1)</script><b onclick=x>&amp;{{ 7*7 }}" in words
    assert words.encode()


def test_a_page_says_what_there_is_to_say(pages):
    words = " ".join(pages["four"].words.split())
    for part in (
        "failed after 1 h 0 min: ClusterLostError, exit code 81",
        "CPUs 79 % busy",
        "worker 2 was killed by signal 9",
        "SLURM_MEM_PER_CPU x 4 CPUs",
        "Unmanaged memory use is high: 5 GiB",
        "12 lines were not kept",
        "worker 2 on n1",
        "distributed 2026.8.0",
    ):
        assert part in words
    assert "The end of this run was not seen" in pages["under way"].words
    assert "Nothing was measured" in pages["nothing"].words
    headings = [tag for tag in pages["four"].tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_a_page_is_small_however_large_the_report_is():
    made = copy.deepcopy(EXTREMES["many"])
    line = made["logs"][0]
    made["logs"] = [{**line, "text": f"{number} " + "<&日" * 3000} for number in range(5000)]
    made["events"] = [{**made["events"][0], "text": "<'\">" * 500}] * 5000
    made["outcome"]["error"]["message"] = "<" * 10**6
    made["task_groups"] = [{**made["task_groups"][0], "name": f"{number}" + "<" * 200} for number in range(1000)]
    name = "n" * 60
    made["nodes"] = {f"{name}{number}": node for number, node in enumerate(list(made["nodes"].values()) * 4)}
    shown = page(made)
    assert len(shown.encode()) < 3_000_000
    # The newest lines are there, and how many are not.
    assert "4999 " in shown
    assert re.search(r"\d+ older lines are in report.json", shown)
    assert len(text(made)) < 60_000


def test_without_bokeh_a_page_has_its_figures_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert plots.bokeh_version() is None
    seen = Reader(page(EXTREMES["four"]))
    assert "Bokeh was not installed" in seen.words
    assert seen.scripts == []
    assert any("script-src 'none'" in (value or "") for _, value in seen.attributes)
    assert "Memory of the workers on all nodes" in seen.words


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(EXTREMES["four"]))
    return tmp_path


def test_the_command_shows_a_report_by_its_file_or_its_directory(run_directory, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    shown = []
    for place in (run_directory, run_directory / "report.json"):
        assert cli.main(["report", str(place)]) == 0
        shown.append(capsys.readouterr())
    assert shown[0].out == shown[1].out
    assert shown[0].err == ""
    assert "ask for `--mem-per-cpu=5G`" in " ".join(shown[0].out.split())
    assert max(map(len, shown[0].out.splitlines())) <= 70


def test_the_command_writes_the_page_for_its_owner_alone(run_directory, capsys):
    file = run_directory / "page.html"
    file.write_text("old")
    file.chmod(0o644)
    assert cli.main(["report", str(run_directory), "--html", str(file)]) == 0
    assert "ClusterLostError" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(file.name for file in run_directory.iterdir()) == ["page.html", "report.json"]
    assert capsys.readouterr() == ("", "")
    assert cli.main(["report", str(run_directory), "--html", str(run_directory / "no" / "page.html")]) != 0
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no report"),
        ("", "is not JSON"),
        ("{" * 100_000, "is not JSON"),
        ('{"format": NaN}', "NaN is no number"),
        ("[]", "does not say `format`"),
        ('{"format": "batchlet-report/9"}', "its format is 'batchlet-report/9'"),
        ('{"format": "batchlet-report/1"}', "it lacks `versions`"),
    ],
)
def test_what_is_no_report_is_refused_by_a_sentence(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert cli.main(["report", str(tmp_path)]) == UsageError("").exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.startswith("batchlet: error: ")
    assert content is None or "Needed: the report.json of a run with --report" in said.err


def test_reports_that_stand_one_directory_below_are_named(run_directory, capsys):
    below = run_directory / "slurm-hpc-4242.0"
    below.mkdir()
    (run_directory / "report.json").rename(below / "report.json")
    assert cli.main(["report", str(run_directory)]) != 0
    assert f"There is {below / 'report.json'}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("workers.2.cpu_seconds", "3", "workers.2.cpu_seconds is '3', not of type number"),
        ("workers.2.rank", 1.5, "workers.2.rank is 1.5, not of type integer or null"),
        ("outcome.state", "odd", "outcome.state is 'odd', none of"),
        ("run.ranks", 0, "run.ranks is 0, less than 1"),
        ("run.ranks", True, "run.ranks is True, not of type integer"),
        ("outcome.error", {"kind": "E"}, "outcome.error lacks `message`"),
        ("timeline", {"a": [["b", 1, 2]]}, "timeline.a[0] has 3 entries, not 2"),
        ("timeline", {"a": [["b"]]}, "timeline.a[0] has 1 entries, not 2"),
        ("time.began", 1e300, "time.began is 1e+300, not of type number"),
        ("logs", {}, "logs is {}, not of type array"),
    ],
)
def test_a_report_that_is_not_in_order_is_refused_with_the_place(tmp_path, path, value, words):
    made = copy.deepcopy(EXTREMES["four"])
    *inner, last = path.split(".")
    place = made
    for name in inner:
        place = place[name]
    place[last] = value
    if value != 1e300:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(made, SCHEMA)
    (tmp_path / "report.json").write_text(json.dumps(made))
    with pytest.raises(UsageError, match=re.escape(words)):
        read(tmp_path)


def test_what_a_later_version_adds_is_no_hindrance(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({**EXTREMES["four"], "weather": "fine"}))
    assert read(tmp_path)["weather"] == "fine"


# Sums and words ----------------------------------------------------------------------------------------------------


def node(at: list[float], **figures: list[float]) -> dict[str, Any]:
    return {"at": at, **figures}


def test_figures_of_nodes_that_were_sampled_at_other_moments_add_up():
    nodes = {
        "a": node([0, 10, 20], used=[1, 2, 3], cpu=[0, 4, 4]),
        "b": node([5, 15, 25], used=[10, 20, 30], cpu=[0, 2, 2]),
    }
    used = total(nodes, "used")
    assert list(zip(used.at, used.values, strict=True)) == [(0, 1), (12.5, 12), (25, 30)]
    cpu = total(nodes, "cpu")
    assert list(cpu.values) == [0, 6, 2]
    assert len(total({}, "used")) == 0
    assert course(node([2, 1], used=[4, 3]), "used") == Course([1, 2], [3, 4])


def test_a_rate_is_what_was_gained():
    assert list(rate(Course([0, 2, 4], [0, 10, 8])).values) == [5, 0]
    assert list(rate(Course([0, 0], [1, 2])).values) == []


def test_figures_are_written_for_people():
    assert [clock(0), clock(3661), clock(-5), clock(1e300)] == ["0:00:00", "1:01:01", "-0:00:05", "1e+300 s"]
    assert [asked_time(60), asked_time(9000), asked_time(90_000)] == ["00:01:00", "02:30:00", "1-01:00:00"]
    assert moment(1e17) == "100000000000000000 s after 1970"
    assert printable("a\tb\x1b\u00a0c") == "a\tb\\x1b c"
    assert cleaned({"a\n": ["\x00", 1, None]}) == {"a\\n": ["\\x00", 1, None]}

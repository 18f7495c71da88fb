"""A real browser opens the dashboard's address and sees the task stream; without the secret it gets nothing.

Needs Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Place
from stand import Held, Standpoint, here, standpoints

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
]
# How many rectangles the task stream has: the longest column of a source of data that has a "start" and a "duration".
RECTANGLES = """
if (typeof Bokeh === "undefined" || !Bokeh.documents.length) { return -1; }
let most = -1;
for (const document of Bokeh.documents) {
    for (const model of document._all_models.values()) {
        if (model.type !== "ColumnDataSource") { continue; }
        const column = name => model.data instanceof Map ? model.data.get(name) : model.data[name];
        if (column("start") && column("duration")) { most = Math.max(most, column("start").length); }
    }
}
return most;
"""
# What is drawn: the pixels of all canvases that have a colour.
PIXELS = """
const roots = [document]; let count = 0;
while (roots.length) {
    const root = roots.pop();
    for (const element of root.querySelectorAll("*")) {
        if (element.shadowRoot) { roots.push(element.shadowRoot); }
        if (element.tagName === "CANVAS" && element.width && element.height) {
            const data = element.getContext("2d").getImageData(0, 0, element.width, element.height).data;
            for (let i = 0; i < data.length; i += 4) {
                const colours = [data[i], data[i + 1], data[i + 2]];
                if (data[i + 3] && Math.max(...colours) - Math.min(...colours) > 40) { count++; }
            }
        }
    }
}
return count;
"""


class Browser:
    """Chromium by way of the WebDriver protocol."""

    def __init__(self, base: str) -> None:
        self._base = base
        options = {
            "goog:chromeOptions": {"args": ARGUMENTS},
            "pageLoadStrategy": "normal",
            "timeouts": {"pageLoad": 30000},
        }
        self._session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        # No proxy: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message'][:500]}") from None

    def _of(self, method: str, path: str, content: Any = None) -> Any:
        return self._ask(method, f"/session/{self._session}{path}", content)

    def open(self, url: str) -> None:
        self._of("POST", "/url", {"url": url})

    @property
    def source(self) -> str:
        return str(self._of("GET", "/source"))

    @property
    def title(self) -> str:
        return str(self._of("GET", "/title"))

    @property
    def url(self) -> str:
        return str(self._of("GET", "/url"))

    def run(self, script: str) -> Any:
        return self._of("POST", "/execute/sync", {"script": script, "args": []})

    def status(self) -> int:
        """The status of the page that is shown."""
        return int(self.run("return performance.getEntriesByType('navigation')[0].responseStatus"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._of("GET", "/screenshot")))

    def quit(self) -> None:
        self._of("DELETE", "")


@contextlib.contextmanager
def browser(place: Place, point: Standpoint, port: int) -> Iterator[Browser]:
    """Start Chromium in that network namespace."""
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        if "browser" in os.environ.get("BATCHLET_REQUIRE", "").replace(",", " ").split():
            pytest.fail("BATCHLET_REQUIRE contains browser, but there is no Chromium", pytrace=False)
        pytest.skip("no Chromium to open the dashboard with (apt-get install chromium chromium-driver)")
    remote = ["--allowed-ips=", "--allowed-origins=*"] if point.enter else []
    home = place.base / "browser"
    home.mkdir()
    environ = {name: value for name, value in place.environ.items() if not name.lower().endswith("_proxy")}
    with (place.base / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            [*point.enter, driver, f"--port={port}", *remote],
            stdout=log,
            stderr=log,
            env={**environ, "HOME": str(home), "TMPDIR": str(home), "XDG_CONFIG_HOME": str(home)},
            start_new_session=True,
        )
    base = f"http://{point.address}:{port}"
    session = None
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{base}/status", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (place.base / "driver.log").read_text()
                time.sleep(0.1)
        session = Browser(base)
        yield session
    finally:
        if session is not None:
            with contextlib.suppress(Exception):
                session.quit()
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("mode", ["local", pytest.param("srun", marks=pytest.mark.slurm)])
def test_dashboard_in_a_browser(request: pytest.FixtureRequest, mode: str) -> None:
    """`runner.dashboard_link`, as it is printed, shows the task stream with what the workers do; without the secret: 404."""
    if mode == "local":
        place = request.getfixturevalue("place")
        run, points = Held(place), [here()]
    else:
        place = request.getfixturevalue("slurm_place")
        run, points = Held(place, "srun", "-N2", "-n4"), standpoints(request.getfixturevalue("cluster"))
    try:
        told = run.told()
        link = told["dashboard"]
        assert link in run.stderr, "the link is not what the start line says"
        point = points[0] if mode == "local" else next(each for each in points if each.address == told["hub"][0])
        with browser(place, point, 9515 + os.getpid() % 20000) as page:
            closed = link.replace("/" + told["token"], "")
            for url in (closed, closed.removesuffix("status"), closed.replace("/status", f"/{'0' * 32}/status")):
                began = time.monotonic()
                page.open(url)
                assert page.status() in (403, 404), (url, page.source[:300])
                assert told["token"] not in page.url + page.source
                assert time.monotonic() - began < 10, "the page never finished loading"
            page.open(link)
            # Loaded at the first look, which takes a moment.
            wait(lambda: "Dask: Status" in page.title or "bokeh" in page.source.lower(), "the status page")
            assert page.run("return location.pathname").startswith(f"/{told['token']}/status")
            wait(lambda: page.run(RECTANGLES) > 8, "tasks in the status page", page)
            page.open(link.removesuffix("status") + "individual-task-stream")
            wait(lambda: page.run(RECTANGLES) > 8, "tasks in the task stream", page)
            before = page.run(RECTANGLES)
            wait(lambda: page.run(RECTANGLES) > before, "more tasks, by the websocket", page)
            wait(lambda: page.run(PIXELS) > 50, "something drawn", page)
            if "TEST_SCREENSHOTS" in os.environ:
                page.screenshot(Path(os.environ["TEST_SCREENSHOTS"]) / f"dashboard-{mode}.png")
            # What the page loads comes from the run itself; nobody else learns of the address.
            loaded = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
            assert not [
                url for url in loaded if told["token"] in url and not url.startswith(link.split(told["token"])[0])
            ]
        result = run.finish()
        assert result.rc == 0, str(result)
        assert len(result.errors) == 2, str(result)
    finally:
        run.end()


def wait(condition: Any, what: str, page: Browser | None = None, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not seen\n{page.source[:3000] if page else ''}"
        time.sleep(0.25)

"""A real browser for the tests: Chromium, by the WebDriver protocol.

Needs Debian's packages chromium and chromium-driver. Without them its tests are skipped with the reason, or fail with it if
``BATCHLET_REQUIRE`` contains "browser".
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from run_helpers import Place, eventually

if TYPE_CHECKING:
    from strangers import Standpoint

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


def unavailable(reason: str) -> NoReturn:
    """Skip, or fail where a browser is a must."""
    if "browser" in os.environ.get("BATCHLET_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"BATCHLET_REQUIRE contains browser, but: {reason}", pytrace=False)
    pytest.skip(reason)


class Browser:
    """Chromium by way of the WebDriver protocol."""

    def __init__(self, base: str) -> None:
        self._base = base
        options = {
            "goog:chromeOptions": {"args": ARGUMENTS},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
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

    def rectangles(self) -> int:
        """How many tasks are in the page's task stream; -1 while there is none."""
        return int(self.run(RECTANGLES))

    def pixels(self) -> int:
        """How many coloured pixels are drawn."""
        return int(self.run(PIXELS))

    def show(self, *, dark: bool = False, media: str = "", width: int = 1200, height: int = 900) -> None:
        """Show the page as on a screen of this width, bright or dark, or as it is laid out for paper."""
        self._devtools("Emulation.setEmulatedMedia", media=media, features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ])  # fmt: skip
        self._devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Save what is seen as a PNG, or the whole page."""
        clip: dict[str, Any] = {}
        if whole:
            size = self._devtools("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        file.write_bytes(base64.b64decode(self._devtools("Page.captureScreenshot", format="png", **clip)["data"]))

    def printed(self) -> bytes:
        """The page as a PDF, on A4."""
        return base64.b64decode(self._of("POST", "/print", {"page": {"width": 21.0, "height": 29.7}}))

    def console(self) -> list[str]:
        """What the page's console has been told since it was last asked; violations of the page's policy are there too."""
        return [f"{entry['level']} {entry['message']}" for entry in self._of("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The addresses that have been asked for since this was last asked, by whatever way."""
        entries = [
            json.loads(entry["message"])["message"] for entry in self._of("POST", "/se/log", {"type": "performance"})
        ]
        return [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]

    def _devtools(self, command: str, **parameters: Any) -> Any:
        return self._of("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def quit(self) -> None:
        self._of("DELETE", "")


@contextlib.contextmanager
def browser(place: Place, point: Standpoint | None = None) -> Iterator[Browser]:
    """Start Chromium here, or in the network namespace of a standpoint."""
    enter, address = ((), "127.0.0.1") if point is None else (point.enter, point.address)
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        unavailable("there is no Chromium to open pages with (apt-get install chromium chromium-driver)")
    port = 20000 + os.getpid() % 10000
    remote = ["--allowed-ips=", "--allowed-origins=*"] if enter else []
    home = place.base / "browser"
    home.mkdir()
    environ = {name: value for name, value in place.environ.items() if not name.lower().endswith("_proxy")}
    with (place.base / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            [*enter, driver, f"--port={port}", *remote],
            stdout=log,
            stderr=log,
            env={**environ, "HOME": str(home), "TMPDIR": str(home), "XDG_CONFIG_HOME": str(home)},
            start_new_session=True,
        )
    base = f"http://{address}:{port}"
    session = None
    try:
        eventually(lambda: _answers(f"{base}/status"), 20, (place.base / "driver.log").read_text, 0.1)
        session = Browser(base)
        yield session
    finally:
        if session is not None:
            with contextlib.suppress(Exception):
                session.quit()
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
        return True
    return False


def wait_for(condition: Callable[[], bool], what: str, page: Browser, seconds: float = 40) -> None:
    """Wait until the page shows something."""
    eventually(condition, seconds, lambda: f"{what}: not seen\n{page.source[:3000]}", 0.25)

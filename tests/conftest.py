"""What all tests share: an environment without a launcher's traces; in tests/unit a warning is an error; the thorough tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from foreign_variables import FOREIGN
from hypothesis import settings

# No directory of examples is left behind; a machine that is busy makes no test fail.
settings.register_profile("quiet", database=None, deadline=None)
settings.load_profile("quiet")

UNIT = Path(__file__).parent / "unit"


@pytest.fixture(autouse=True)
def _scrubbed_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the launcher, the Dask or the Batchlet that happens to surround it; a test of a launcher does."""
    if any(request.node.get_closest_marker(name) for name in ("slurm", "gridengine", "mpirun", "mpi")):
        return
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="run the tests of tests/thorough.txt too, as before a release"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.getoption("--thorough") or _named(config):
        return None
    return f"thorough: {len(thorough())} lines of tests/thorough.txt are left out; --thorough runs them too"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if UNIT in item.path.parents:
            # In front of the item's own marks, so that a test may still allow a warning.
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)
    if config.getoption("--thorough") or _named(config):
        return
    begin = thorough()
    left_out = [item for item in items if item.nodeid.startswith(begin)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.nodeid.startswith(begin)]


def thorough() -> tuple[str, ...]:
    """Give how the ids of the tests begin that are run before a release alone."""
    lines = (UNIT.parent / "thorough.txt").read_text().splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def _named(config: pytest.Config) -> bool:
    """Whether single tests are asked for, which are run whatever they are."""
    return any("::" in argument for argument in config.args) or bool(config.getoption("keyword"))

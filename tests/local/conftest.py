"""How the tests without a launcher start programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from run_helpers import Place, Result, Run


@pytest.fixture
def place() -> Iterator[Place]:
    """A working directory and a temporary directory of the test's own."""
    place = Place()
    yield place
    place.close()


@pytest.fixture
def python(place: Place) -> Run:
    """Run a script with Python alone; nothing may be left of it."""

    def run(
        script: str | Path,
        *argv: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Result:
        return place.run(sys.executable, place.script(script), *argv, env=env, timeout=timeout)

    return run

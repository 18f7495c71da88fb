"""The list of tests that are run before a release alone: each line of it is of a test that there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_each_line_of_the_list_is_how_the_id_of_a_test_begins():
    lines = [line for line in (TESTS / "thorough.txt").read_text().splitlines() if line and not line.startswith("#")]
    files = sorted({line.partition("::")[0] for line in lines})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--thorough", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=250, check=True)
    ids = result.stdout.splitlines()
    assert [line for line in lines if not any(one.startswith(line) for one in ids)] == []
    assert len(lines) == len(set(lines))
    assert all(line.count("::") in (1, 2) for line in lines), "not whole files"

"""Versions are found whatever the script is importing at that moment in another thread."""

from __future__ import annotations

import os
import subprocess
import sys

SLOW = "import time\ntime.sleep(0.5)\nfrom importlib.metadata import PackageNotFoundError, version\n"
ASK = """
import sys, threading, time
from batchlet.versions import versions
other = threading.Thread(target=lambda: __import__("importlib_metadata"))
other.start()
while "importlib_metadata" not in sys.modules:
    time.sleep(0.001)
print(sorted(versions()))
"""


def test_a_module_that_is_half_imported_is_waited_for(tmp_path):
    (tmp_path / "importlib_metadata.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.stdout == "['Python', 'dask', 'dask-batchlet', 'distributed']\n", done.stderr

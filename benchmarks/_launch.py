"""Run a launcher (srun, mpirun, ...) and note when it was started and when it has ended: `_launch.py FILE COMMAND...`.

Inside the allocation, so that what Slurm needs to grant one is no part of the figures. CLOCK_MONOTONIC is one clock for all
processes of a Linux host, which the nodes of the test Slurm share.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    began = time.monotonic()
    # Without a time-out it waits in the kernel, and returns at the moment of the end.
    code = subprocess.Popen(sys.argv[2:]).wait()
    Path(sys.argv[1]).write_text(json.dumps({"began": began, "ended": time.monotonic(), "code": code}))
    sys.exit(code if code >= 0 else 128 - code)

"""Connections to the scheduler's port that never prove to be of the run."""

from __future__ import annotations

import sys

from run_helpers import Place, open_files

FLOOD = """
import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
for number in range(2000):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
    held.append(connection)
    try:
        if number % 3:
            hello = b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03"
            connection.sendall(hello if number % 3 == 1 else os.urandom(2000))
    except OSError:
        pass
    if len(held) > 500:
        # No more than the limit allows this process; what it has closed is still the other side's to notice.
        held.pop(0)
print("hanging", flush=True)
sys.stdin.read()
"""
SCRIPT = f"""
import resource, subprocess, sys
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner(workers_per_node=1, node_links=False) as runner, Client(runner) as client:
    host, port = runner.scheduler_address.split("://")[1].split(":")
    flood = subprocess.Popen(
        [sys.executable, "-c", {FLOOD!r}, host, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert flood.stdout.readline() == "hanging\\n"
    with Client(runner.scheduler_address, security=runner.security, timeout=20) as another:
        print(client.submit(sum, [1, 2]).result(20), another.submit(sum, [3, 4]).result(20))
    flood.stdin.close()
    flood.wait()
"""


def test_unfinished_connections_do_not_use_up_the_open_files(place: Place) -> None:
    """2,000 of them, where 700 files may be open: those who are there go on, and who comes gets in."""
    result = place.run(*open_files("", 700), sys.executable, place.script(SCRIPT), timeout=90)
    assert (result.rc, result.stdout) == (0, "3 7\n"), str(result)
    assert "Too many open files" not in result.stderr, str(result)
    assert len(result.errors) <= 6, "one line in each process about those who knock"

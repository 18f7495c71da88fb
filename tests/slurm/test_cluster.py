"""The test cluster itself: it comes up beside others and after a crash, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cluster_slurm import MARKER, SlurmCluster
from run_helpers import Place, eventually, reserved_instance

pytestmark = pytest.mark.slurm


def processes_of(cluster: SlurmCluster) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == str(cluster.state_dir):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_cluster_comes_up_after_a_crash_and_leaves_nothing(cluster: SlurmCluster) -> None:
    """A cluster whose controller was killed comes up again, without the old job; taken down, nothing of it is left."""
    with reserved_instance() as instance:
        assert instance != cluster.instance
        other = SlurmCluster(instance, nodes=2)
        place = Place(other.env(), on_timeout=other.end_jobs)
        try:
            other.down()
            assert other.up()
            assert not other.up(), "a second `up` builds it again"
            seen = place.cwd / "seen"
            script = place.script(
                "import os, sys, time\nopen(sys.argv[1] + os.environ['SLURM_PROCID'], 'w')\ntime.sleep(1000)\n"
            )
            srun = subprocess.Popen(
                ["srun", "-N2", "-n2", sys.executable, script, str(seen)],
                env=place.environ,
                cwd=place.cwd,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            eventually(lambda: len(list(place.cwd.iterdir())) == 2, 10, "the job did not start")
            os.kill(int((other.state_dir / "slurmctld.pid").read_text()), signal.SIGKILL)
            srun.kill()
            srun.wait()

            again = SlurmCluster(instance, nodes=2)
            assert again.up()
            result = place.run("srun", "-N2", "-n2", "hostname", timeout=10)
            assert sorted(result.stdout.split()) == list(again.node_names)
        finally:
            other.down()
            left = [process.pid for process in place.processes()]
            place.close()
        assert left == [], "processes of the old job are left"
        assert processes_of(other) == []
        assert not other.state_dir.exists()
        assert not Path("/sys/class/net", other.link).exists()
        assert list(Path("/sys/fs/cgroup").glob(f"**/slurm_{other.node_prefix}[0-9]*")) == []
        other.down()
    assert cluster.is_up, "it took the other cluster down too"

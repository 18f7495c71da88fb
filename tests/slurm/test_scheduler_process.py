"""Where the scheduler runs: forked from the agent of rank 0's node, as part of rank 0; or in rank 0 itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_helpers import options
from run_helpers import Place, Run, json_line

pytestmark = pytest.mark.slurm

WHERE = """
import json, os, sys
{above}
from batchlet import BatchletRunner

os.environ["SET_IN_THE_SCRIPT"] = "by " + os.environ["SLURM_PROCID"]
sys.path.append("/of/the/script/" + os.environ["SLURM_PROCID"])

def look():
    names = ("SLURM_PROCID", "SLURM_TASK_PID", "SET_IN_THE_SCRIPT", "ONLY_OF_2", "OMP_NUM_THREADS")
    return {{
        "pid": os.getpid(),
        "environ": {{name: os.environ.get(name) for name in names}},
        "path": sys.path[-1],
        "cwd": os.getcwd(),
        "cpus": len(os.sched_getaffinity(0)),
    }}

def option(dask_scheduler):
    return dask_scheduler.allowed_failures

with BatchletRunner(scheduler_options={{"allowed_failures": 17}}) as runner:
    from dask.distributed import Client
    with Client(runner) as client:
        found = client.run_on_scheduler(look)
        found["option"] = client.run_on_scheduler(option)
        found["sum"] = sum(client.gather(client.map(lambda number: number + 1, range(50))))
        print("RESULT " + json.dumps(found))
"""
FIRST = "import dask.distributed"
# Rank 2, whose node's host it starts, is unlike rank 0.
UNLIKE = ("sh", "-c", 'test $SLURM_PROCID != 2 || export ONLY_OF_2=yes; exec "$@"', "sh")


@pytest.mark.parametrize(
    ("case", "apart"),
    [("below", True), ("above", False), ("nobody shares", False), ("heads alone on their nodes", True)],
)
def test_the_scheduler_has_a_process_of_its_own_where_rank_0_has_no_dask(
    srun: Run, place: Place, case: str, apart: bool
) -> None:
    """It is of rank 0 wherever it runs; a process of its own where rank 0 has not imported Dask."""
    env = options(share_node=False) if case == "nobody shares" else {}
    shape = ["-N4", "-n4"] if case.startswith("heads") else ["-N2", "-n6", "--ntasks-per-node=3"]
    script = WHERE.format(above=FIRST if case == "above" else "")
    result = srun(*shape, script=script, prefix=UNLIKE, env=env)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["environ"]["SLURM_PROCID"] == "0"
    assert found["environ"]["SET_IN_THE_SCRIPT"] == "by 0"
    assert found["environ"]["ONLY_OF_2"] is None
    assert found["environ"]["OMP_NUM_THREADS"] is None
    assert found["path"] == "/of/the/script/0"
    assert Path(found["cwd"]) == place.cwd
    assert (found["option"], found["sum"]) == (17, sum(range(51)))
    assert (found["pid"] != int(found["environ"]["SLURM_TASK_PID"])) is apart


def test_rank_0_goes_on_without_an_agent_that_comes_too_late(srun: Run) -> None:
    """Ranks that come too late to start an agent for it keep rank 0 from nothing."""
    late = ("sh", "-c", 'test $SLURM_PROCID -lt 2 || sleep 6; exec "$@"', "sh")
    result = srun("-n4", script=WHERE.format(above=""), prefix=late)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["pid"] == int(found["environ"]["SLURM_TASK_PID"])
    assert found["sum"] == sum(range(51))


CONFIG = """
logging:
  version: 1
  disable_existing_loggers: false
  handlers:
    file:
      class: logging.FileHandler
      filename: {path}
  loggers:
    distributed:
      level: INFO
      handlers: [file]
      propagate: false
"""


def test_logs_go_where_the_users_configuration_sends_them(srun: Run, place: Place) -> None:
    """Dask's logs go where the user's configuration of Dask sends them, of workers and scheduler too."""
    config = place.base / "config"
    config.mkdir()
    log = place.base / "dask.log"
    (config / "logging.yaml").write_text(CONFIG.format(path=log))
    result = srun("-n4", script=WHERE.format(above=""), env={"DASK_CONFIG": str(config)})
    assert result.rc == 0, str(result)
    assert "Logging error" not in result.stderr, str(result)
    text = log.read_text()
    assert text.count("Start worker at:") == 2, text
    assert "Scheduler at:" in text, text

"""A run that is stopped before the end of its time, without a launcher: what the script sees, and the exit code."""

from __future__ import annotations

import sys

import pytest
from run_helpers import WORKLOADS, Place, Run

sys.path.append(str(WORKLOADS.parent))
from fault_helpers import FAULTS, check_tidy, options

ENV = options(workers_per_node=1, threads_per_worker=2, memory_per_worker="256MiB")

STOPPED = """
import sys, time
from batchlet import BatchletRunner
from dask.distributed import Client

def tell(*words):
    print(*words, flush=True)

with BatchletRunner() as runner, Client(runner) as client:
    tell("left", 0 < runner.time_left <= 12, "aware", runner.ends_at.tzinfo is not None, "attempt", runner.attempt)
    tell("moment", (runner.ends_at - runner.before_end("6s", lambda: tell("first", client.submit(sum, [1, 2]).result()))))
    runner.before_end(3, lambda: tell("second"))
    waiting = client.submit(time.sleep, 4)
    try:
        waiting.result()
        time.sleep(60)
    except Exception:
        tell("an exception")
    except BaseException as error:
        tell("caught", type(error).__name__, isinstance(error, SystemExit))
        raise
    finally:
        tell("finally", client.submit(sum, [1, 2, 3]).result())
"""


def test_the_callbacks_then_the_error_at_the_earliest_of_the_moments(python: Run) -> None:
    """All callbacks run in the main thread, with a cluster that works, then `TimeIsUpError` is raised; exit code 84."""
    result = python(STOPPED, env={**ENV, **options(time_limit=12)})
    assert result.rc == 84, str(result)
    assert result.stdout.splitlines() == [
        "left True aware True attempt 1", "moment 0:00:06", "first 3", "second", "caught TimeIsUpError True", "finally 6",
    ], str(result)  # fmt: skip
    assert [line.split(":")[1][:11] for line in result.errors[1:]] == [" time is up", " ended by T"], str(result)
    assert result.seconds < 15, str(result)
    check_tidy(result)


@pytest.mark.parametrize(
    ("flags", "code", "rc", "says"),
    [
        (["--time-limit=2"], "time.sleep(60)", 84, "time is up: the run ends at"),
        (
            ["--time-limit=8", "--stop-before=5"],
            "from batchlet import BatchletRunner; BatchletRunner().before_end(callback=lambda: 1 / 0); time.sleep(60)",
            1,
            "ended by ZeroDivisionError",
        ),
        (["--time-limit=10min", "--stop-before=1h"], "print('runs')", 2, "error: stop_before (1 h 0 min) is more than"),
        (["--time-limit=10min", "--stop-before=soon"], "print('runs')", 2, "error: stop_before='soon' cannot be used"),
        (
            ["--time-limit=10min"],
            "from batchlet import BatchletRunner; BatchletRunner().before_end('1h')",
            2,
            "error: before_end (1 h 0 min) is more than the time that is left",
        ),
        (
            [],
            "from batchlet import BatchletRunner; BatchletRunner().before_end()",
            2,
            "error: before_end was given no time",
        ),
        # A laptop: nothing happens.
        (
            ["--requeue", "--stop-before=1h"],
            "from batchlet import BatchletRunner; print(BatchletRunner().before_end('1h', print), BatchletRunner().time_left)",
            0,
            "done after",
        ),
    ],
)
def test_under_the_command_line_too(place: Place, flags: list[str], code: str, rc: int, says: str) -> None:
    """An unmodified script is stopped as well; what cannot be is refused; a failing callback is what the user sees."""
    command = [sys.executable, "-m", "batchlet", *flags, "-c", f"import time; {code}"]
    result = place.run(*command, env=ENV)
    assert result.rc == rc, str(result)
    assert sum(says in line for line in result.errors) == 1, str(result)
    assert "runs" not in result.stdout, str(result)
    assert result.seconds < 20, str(result)


def test_a_script_in_compiled_code_is_ended(place: Place) -> None:
    """A script that does not come back is ended before its time is, with the same exit code."""
    env = {**ENV, **options(time_limit=9, stop_before=5, stop_timeout=1)}
    result = place.run(sys.executable, str(FAULTS), "in-c-code", env=env)
    assert result.rc == 84, str(result)
    assert sum("the script did not end within 2.5 s" in line for line in result.errors) == 1, str(result)
    assert result.seconds < 15, str(result)

"""`start` and `close` in a script: the exit code stays the script's, and nothing is left, whether it closes or not."""

from __future__ import annotations

import signal
import sys

import pytest
from run_helpers import Place, Result

SCRIPT = """
import os, signal, sys, time
from batchlet import BatchletRunner

runner = BatchletRunner()
assert runner.start() is runner
from dask.distributed import Client

client = Client(runner)
print("sum", client.submit(sum, [1, 2, 3]).result(), flush=True)
how = sys.argv[1]
if how == "close":
    runner.close()
    runner.close()
    print(runner.status.name, client.status, flush=True)
if how == "closed inside":
    runner.close()
    runner.start()
if how == "shutdown":
    client.shutdown()
    print(runner.status.name, flush=True)
if how == "exit":
    sys.exit(3)
if how == "error":
    raise ValueError("of the user")
if how == "twice":
    runner.start()
if how == "scale":
    runner.scale(5)
if how in ("SIGINT", "SIGTERM"):
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(50)
print("end", flush=True)
"""
CODES = {
    "nothing": 0,
    "close": 0,
    "shutdown": 0,
    "exit": 3,
    "error": 1,
    "twice": 2,
    "scale": 2,
    "closed inside": 2,
    "SIGINT": 130,
    "SIGTERM": 143,
}
SAYS = {
    "twice": "This BatchletRunner is running already.",
    "scale": "scale() cannot be: this cluster is made of the processes that the launcher has started",
    "closed inside": "This BatchletRunner was used before, and is closed.",
}


def check(result: Result, how: str) -> None:
    assert result.rc == CODES[how], str(result)
    # srun has all ranks' output; the script's lines are there once.
    assert result.stdout.count("sum 6") == 1, str(result)
    assert ("end\n" in result.stdout) == (CODES[how] == 0), str(result)
    assert result.seconds < 30
    # One line at the start, one at the end, and one sentence between them where something was asked that cannot be.
    own = [line for line in result.errors if line.startswith("batchlet: ")]
    assert len(own) == (3 if how in SAYS else 2), str(result)
    assert SAYS.get(how, "") in result.stderr, str(result)
    if how == "error":
        assert "ended by ValueError" in own[-1], str(result)
    if how in ("nothing", "close", "shutdown", "exit"):
        assert len(result.errors) == 2, str(result)
        assert own[-1].startswith("batchlet: done after"), str(result)


@pytest.mark.parametrize("how", CODES)
def test_a_script_that_starts_by_hand_ends_with_its_own_code(place: Place, how: str) -> None:
    """Whatever ends the script: with or without `close` the cluster ends in good order, and the exit code is the script's."""
    check(place.run(sys.executable, place.script(SCRIPT), how), how)


@pytest.mark.slurm
@pytest.mark.parametrize("how", ["nothing", "closed inside", "error", "SIGTERM"])
def test_the_same_under_srun(slurm_place: Place, how: str) -> None:
    """On the other ranks `start` never returns, and they end with the script."""
    command = ["srun", "-N2", "-n5", sys.executable, slurm_place.script(SCRIPT), how]
    check(slurm_place.run(*command), how)


SHELL_LIKE = """
import sys
from batchlet import BatchletRunner

runner = BatchletRunner()
runner.close()
print(repr(runner), runner.status.name)
print(runner._repr_html_())
print(runner.scheduler_address)
"""


def test_a_runner_that_was_never_started_can_be_closed_and_says_so(place: Place) -> None:
    """`close` does nothing, both kinds of repr say "not started", and what needs a cluster is refused in a sentence."""
    result = place.run(sys.executable, place.script(SHELL_LIKE))
    assert result.rc == 2, str(result)
    assert "not started> created" in result.stdout
    assert "<td" in result.stdout
    assert len(result.errors) == 1, str(result)
    assert "has not been started (scheduler_address was asked for)" in result.errors[0]


ASYNCHRONOUS = """
import asyncio, sys
from batchlet import BatchletRunner


async def main():
    runner = await BatchletRunner(asynchronous=True)
    assert (await runner) is runner
    from dask.distributed import Client

    client = await Client(runner, asynchronous=True)
    print("sum", await client.submit(sum, [1, 2, 3]), flush=True)
    await client.close()
    if sys.argv[1] == "close":
        await runner.close()
        await runner.close()
    print("end", flush=True)


asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["close", "nothing"])
def test_an_asynchronous_script_may_await_its_runner(place: Place, how: str) -> None:
    """`await runner` starts it, and awaited again gives it; the end of the process ends it as well."""
    result = place.run(sys.executable, place.script(ASYNCHRONOUS), how)
    assert result.rc == 0, str(result)
    assert result.stdout == "sum 6\nend\n", str(result)
    assert len(result.errors) == 2, str(result)


def test_the_users_signal_handlers_are_back_after_close(place: Place) -> None:
    """`close` puts back what was there, also when Dask's client closes its cluster in its event loop."""
    script = """
import os, signal, sys, time
from batchlet import BatchletRunner
from dask.distributed import Client

numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGURG)
before = [signal.getsignal(number) for number in numbers]
with_close = BatchletRunner()
with_close.start().close()
print(before == [signal.getsignal(number) for number in numbers])
"""
    result = place.run(sys.executable, place.script(script))
    assert (result.rc, result.stdout) == (0, "True\n"), str(result)


def test_after_client_shutdown_ctrl_c_is_the_users_again(place: Place) -> None:
    """Python cannot put back a handler in another thread: the next signal finds its way all the same."""
    script = """
import os, signal, sys, time
from batchlet import BatchletRunner
from dask.distributed import Client

runner = BatchletRunner()
runner.start()
Client(runner).shutdown()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
except KeyboardInterrupt as error:
    print(type(error).__name__)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""
    result = place.run(sys.executable, place.script(script))
    assert result.stdout == "KeyboardInterrupt\n", str(result)
    assert result.rc == -signal.SIGTERM, str(result)

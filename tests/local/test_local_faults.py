"""The fault matrix without a launcher: whatever ends the script, its workers end too, and not before it is done."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import termios
import time

import pytest
from run_helpers import WORKLOADS, Place, Result

sys.path.append(str(WORKLOADS.parent))
from fault_helpers import FAULTS, SLACK, Fault, Running, check, options

ENV = options(workers_per_node=2, threads_per_worker=1, memory_per_worker="256MiB")
GRACE = {**ENV, **options(grace=2, stop_timeout=4)}


def strike(number: int):
    """Send a signal to the script's process alone."""
    return lambda running: running.process.send_signal(number)


def strike_all(number: int):
    """Send a signal to all processes of the terminal, as Ctrl-C does."""
    return lambda running: os.killpg(running.process.pid, number)


WORKING = ["finally works too, task completed"]
CASES = {
    "raises": Fault("rc 1.", "raises", 1, ["^ValueError: of the user$", "^batchlet: ended by ValueError"], tracebacks=1),
    "exits 3": Fault("rc 3.", "exits 3", 3, ["^batchlet: done after"]),
    "os._exit(4)": Fault("The workers end with the script.", "exits-hard", 4),
    "SIGKILL": Fault("The workers end with the script.", f"signals-itself {int(signal.SIGKILL)}", -signal.SIGKILL),
    "1,000 futures": Fault("They do not keep it.", "leaves-futures", 0, ["^batchlet: done after"], ["after the block"]),
    "worker killed": Fault(
        "It is started again.", "worker-killed", 0, ["^batchlet: worker process .* killed"], ["sum 190", "workers 0"],
        within=20,
    ),
    "SIGTERM": Fault(
        "The cluster works until the script is done.", "cleans-up", 143, ["^batchlet: .*SIGTERM"],
        ["callback 15 works", *WORKING], ready="under way",
        act=strike(signal.SIGTERM),
    ),
    "SIGINT": Fault(
        "Likewise.",
        "cleans-up", 130, ["^batchlet: .*SIGINT"], ["callback 2 works", *WORKING], ready="under way",
        act=strike(signal.SIGINT),
    ),
    "SIGINT to all": Fault(
        "Ctrl-C at a terminal reaches the workers too, which go on until the script is done.",
        "cleans-up", 130, ["^batchlet: .*SIGINT"], ["callback 2 works", *WORKING], ready="under way",
        act=strike_all(signal.SIGINT),
    ),
    "SIGTERM to all": Fault(
        "As at a batch system's time limit.",
        "cleans-up", 143, ["^batchlet: .*SIGTERM"], ["callback 15 works", *WORKING], ready="under way",
        act=strike_all(signal.SIGTERM),
    ),
    "SIGTERM to another thread": Fault(
        "Python acts on a signal in the main thread, which has to be woken for it.",
        "waits-deaf", 143, ["^batchlet: .*SIGTERM"], ["finally works too"], ready="under way",
        act=strike(signal.SIGTERM),
    ),
    "SIGTERM to a script that goes on": Fault(
        "A signal is nothing that a script's `except Exception` takes for one failed step of many.",
        "goes-on", 143, ["^batchlet: .*SIGTERM"], ready="under way",
        act=strike(signal.SIGTERM),
    ),
    "SIGTERM in a finalizer": Fault(
        "Python ignores what is raised there, of which Dask's futures have many; the script hears it all the same, and once.",
        "in-a-finalizer", 143, ["^batchlet: .*SIGTERM"], ["callback 15", "finally 3"], ready="under way",
        act=strike(signal.SIGTERM), within=10,
    ),
    "ignored": Fault(
        "A script that does not end within grace is ended.", "ignores-sigterm", 143,
        ["the script did not end within 2 s"], env=GRACE, act=strike(signal.SIGTERM), within=2 + 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_fault_has_its_exit_code_and_message_and_leaves_nothing(place: Place, case: str) -> None:
    """Exit code, message, and nothing left."""
    fault = CASES[case]
    running = Running(place, sys.executable, str(FAULTS), *fault.args.split(), env={**ENV, **fault.env})
    try:
        running.wait_for(fault.ready)
        if fault.act is not None:
            fault.act(running)
        result = running.finish(fault.within)
        check(fault, result)
    finally:
        running.end()
    running.assert_nothing_left(result)


def test_ctrl_c_at_a_terminal_ends_the_run_with_130(place: Place) -> None:
    """Ctrl-C typed at a real terminal: the kernel signals all of the foreground group."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place.cwd)
        os.execve(sys.executable, [sys.executable, str(FAULTS), "cleans-up"], {**place.environ, **ENV})
    # The kernel signals first and then throws away what the terminal has not shown yet: what the script prints in between.
    modes = termios.tcgetattr(terminal)
    modes[3] |= termios.NOFLSH
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
    output = b""
    began = time.monotonic()
    while b"under way" not in output:
        assert time.monotonic() < began + 30
        output += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    struck = time.monotonic()
    while True:
        try:
            part = os.read(terminal, 1000)
        except OSError:
            break
        if not part:
            break
        output += part
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.monotonic() - struck
    os.close(terminal)
    text = re.sub(r"\r", "", output.decode()).replace("^C", "")
    assert seconds < 5 + SLACK, text
    fault = Fault("", "", 130, ["^batchlet: .*SIGINT"], ["callback 2 works", *WORKING])
    check(fault, Result(code, text, text, seconds))
    place.assert_nothing_left()


COMES_BACK = """
import os, signal, time
from batchlet import BatchletRunner
from distributed import Client

if __name__ == "__main__":
    with BatchletRunner() as runner, Client(runner) as client:
        [address] = client.run(os.getpid)
        busy = client.submit(time.sleep, 2, workers=[address])
        time.sleep(1)
        [pid] = client.run(os.getpid, workers=[address]).values()
        os.kill(pid, signal.SIGKILL)
        print("back", busy.result(timeout=60), list(client.run(os.getpid)) == [address])
"""


def test_a_task_that_belongs_to_a_worker_is_done_when_that_is_back(place: Place) -> None:
    env = {**ENV, **options(workers_per_node=1)}
    result = place.run(sys.executable, place.script(COMES_BACK), env=env, timeout=120)
    assert (result.rc, result.stdout) == (0, "back None True\n"), result

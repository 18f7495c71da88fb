"""IPython and Python at a terminal: alone, by `srun --pty` on a node, and in the shell of an allocation of two nodes."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest
from run_helpers import Place, eventually

IPYTHON = ("-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit", "--HistoryManager.enabled=False")
PYTHON = ("-i", "-q")
LAUNCHES = {
    "alone": (),
    "srun --pty": ("srun", "--pty", "-n1", "-c2"),
    "salloc": ("salloc", "-N2", "-n4", "--ntasks-per-node=2"),
}


class Terminal:
    """A program at a terminal: what is typed, what is shown."""

    def __init__(self, place: Place, command: Sequence[str]) -> None:
        self._master, slave = pty.openpty()
        home = place.base / "home"
        home.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            command,
            cwd=place.cwd,
            env={**place.environ, "TERM": "dumb", "HOME": str(home), "IPYTHONDIR": str(home / "ipython")},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its controlling terminal
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.seen = ""

    def _read(self) -> str:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self.seen += data.decode(errors="replace")
        return self.seen

    def expect(self, text: str, seconds: float = 40) -> str:
        """Wait for a text, and give all that has been shown up to it; that is not looked at again."""
        eventually(lambda: text in self._read(), seconds, lambda: f"{text!r} was not shown:\n{self.seen}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")

    def ask(self, line: str, answer: str) -> str:
        """Type a line; its result is told from its echo by being computed."""
        self.type(line)
        return self.expect(answer)

    def interrupt(self) -> None:
        os.write(self._master, b"\x03")

    def end(self, seconds: float = 30) -> int:
        eventually(
            lambda: (self._read(), self.process.poll() is not None)[1], seconds, lambda: f"goes on:\n{self.seen}"
        )
        return self.process.returncode


@contextlib.contextmanager
def terminal(place: Place, *command: str) -> Iterator[Terminal]:
    opened = Terminal(place, command)
    try:
        yield opened
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(opened.process.pid, signal.SIGKILL)
        opened.process.wait(10)
        os.close(opened._master)


def begin(seen: Terminal) -> None:
    seen.ask("print('pro' + 'mpt')", "prompt\r\n")
    seen.ask("import time; from batchlet import BatchletRunner; print('impor' + 'ted')", "imported\r\n")
    seen.ask("runner = BatchletRunner(); started = runner.start(); print('star' + 'ted')", "started\r\n")
    seen.ask(
        "from dask.distributed import Client; client = Client(runner); print('conn' + 'ected')",
        "connected\r\n",
    )


@pytest.fixture(params=["alone", *[pytest.param(how, marks=pytest.mark.slurm) for how in LAUNCHES if how != "alone"]])
def launched(request: pytest.FixtureRequest) -> tuple[Place, tuple[str, ...]]:
    return request.getfixturevalue("place" if request.param == "alone" else "slurm_place"), LAUNCHES[request.param]


@pytest.mark.parametrize("session", ["ipython", "python"])
def test_ctrl_c_at_a_terminal_interrupts_what_was_typed_and_nothing_else(launched, session: str) -> None:
    """Ctrl-C in `result()` is a KeyboardInterrupt there; the cluster computes on; misuse ends nothing; exit ends all."""
    if session == "ipython":
        pytest.importorskip("IPython", reason="no IPython to type into")
    place, launch = launched
    before = place.files()
    with terminal(place, *launch, sys.executable, *(IPYTHON if session == "ipython" else PYTHON)) as seen:
        begin(seen)
        for _ in range(2):
            seen.type("print('bu' + 'sy'); client.submit(time.sleep, 8, pure=False).result()")
            seen.expect("busy\r\n")
            time.sleep(0.5)
            seen.interrupt()
            assert "batchlet" not in seen.expect("KeyboardInterrupt")
            # srun takes a second Ctrl-C within a second for a wish to end the job.
            time.sleep(1.2)
        seen.ask("print('sum', client.submit(sum, [1, 2, 3]).result())", "sum 6\r\n")
        seen.ask("runner.start()", ": This BatchletRunner is running already.")
        seen.ask("print('sum', client.submit(sum, [1, 2, 4]).result())", "sum 7\r\n")
        seen.type("raise SystemExit(0)" if session == "python" else "exit")
        assert seen.end() == 0
        assert "batchlet: done after" in seen.seen, seen.seen
    place.assert_nothing_left(before, seen.seen)


@pytest.mark.slurm
def test_sigterm_ends_ipython_on_a_node_with_143(slurm_place: Place) -> None:
    """SIGTERM for the step: the run ends, then IPython, and srun's exit code says why."""
    pytest.importorskip("IPython", reason="no IPython to type into")
    before = slurm_place.files()
    with terminal(slurm_place, *LAUNCHES["srun --pty"], sys.executable, *IPYTHON) as seen:
        begin(seen)
        seen.type("print('bu' + 'sy'); client.submit(time.sleep, 50).result()")
        seen.expect("busy\r\n")
        steps = slurm_place.run_only("squeue", "--noheader", "--steps", "--format=%i", timeout=10).stdout.split()
        (step,) = [name for name in steps if name.endswith(".0")]
        slurm_place.run_only("scancel", "--signal=TERM", step, timeout=10)
        assert seen.end() == 143, seen.seen
    slurm_place.assert_nothing_left(before, seen.seen)

"""The ranks that Batchlet starts itself, by a `Launcher`: from its command line to its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import IO

from ..errors import LauncherError, StartTimeoutError
from ..node import inputs
from ..node.rank import Rank
from ..node.start import RANK, command
from ..node.worker_rank import Options
from ..rendezvous.base import CoordinatorRecord
from ..rendezvous.pipe import MARK
from .base import Launcher

__all__ = ["start_step"]

_PAUSE = 0.01


@contextlib.contextmanager
def start_step(rank: Rank, options: Options, launcher: Launcher) -> Iterator[CoordinatorRecord]:
    """Start the scheduler and the workers on the nodes of the allocation, and see them end.

    The ranks read from a pipe that this process holds open, so that they end with this process, whatever ends that.

    Parameters
    ----------
    rank : Rank
        The client.
    options : mapping of str to object
        What the user asked for, as it was given.
    launcher : Launcher
        What starts the ranks.

    Raises
    ------
    LauncherError
        If the launcher is not there, or cannot start the ranks.
    StartTimeoutError
        If the scheduler does not come in time.
    """
    job = _job(rank)
    if not launcher.is_there():
        raise LauncherError(launcher.missing(job))
    info = rank.info
    # A session of its own: Ctrl-C is for the client, who then ends the step in good order.
    process = subprocess.Popen(
        launcher.command(info.world_size, command(RANK)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=launcher.environ(rank.environ, info.node if info.extra_clients else None),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output = _Output(process.stdout)
    try:
        with contextlib.suppress(BrokenPipeError):
            _send(process.stdin, inputs.for_agent(options, rank.deadline))
        record = _await_record(process, output, rank, launcher)
        with contextlib.suppress(BrokenPipeError):
            _send(process.stdin, {"record": asdict(record)})
        yield record
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        _end(process, launcher, rank.settings.stop_timeout)
        output.join()


def _send(pipe: IO[bytes], words: Mapping[str, object]) -> None:
    pipe.write(inputs.encode(words))
    pipe.flush()


def _job(rank: Rank) -> str:
    """Name the allocation in a message."""
    title = rank.environment.title
    return f"{title} {rank.info.job}" if title else rank.info.job


def _await_record(
    process: subprocess.Popen[bytes], output: _Output, rank: Rank, launcher: Launcher
) -> CoordinatorRecord:
    while output.record is None:
        if process.poll() is not None:
            raise LauncherError(launcher.failed(_job(rank), process.returncode))
        if time.monotonic() > rank.deadline:
            raise StartTimeoutError(launcher.late(_job(rank), rank.settings.start_timeout))
        time.sleep(_PAUSE)
    return output.record


def _end(process: subprocess.Popen[bytes], launcher: Launcher, timeout: float) -> None:
    """Wait for the launcher, and end it if it does not end by itself."""
    for number in (None, *launcher.ends):
        if number is not None:
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
            return


class _Output:
    """What the step prints: the record, and then whatever the user's tasks print."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.record: CoordinatorRecord | None = None
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="batchlet-step-output", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(1.0)

    def _read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            # Wherever it stands in its line, it holds the run's secret, which is never to be printed.
            _, mark, record = line.partition(MARK.encode())
            if mark:
                self.record = self.record or CoordinatorRecord.from_json(record.decode())
            else:
                with contextlib.suppress(OSError):
                    os.write(sys.stdout.fileno(), line)

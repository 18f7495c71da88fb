"""Running a batch system's commands: never for longer than they may take, and with what they say as one sentence."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .systems import batch_system

__all__ = ["Answer", "cancel_pending", "run", "words_of"]

# Seconds. Slurm's commands try for a minute or two to reach a controller that is busy.
TIMEOUT = 60.0
# Seconds of a node that has lost its client, and perhaps all others.
_ALONE = 8.0
_LONGEST = 300


@dataclass(frozen=True)
class Answer:
    """What a command has said.

    Parameters
    ----------
    code : int
        Its exit code; 127 where it is not there, 124 where it took too long.
    out, err : str
        What it has printed.
    """

    code: int
    out: str
    err: str


def run(command: Sequence[str], environ: Mapping[str, str], timeout: float = TIMEOUT) -> Answer:
    """Run a command; blocks."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(environ),
            timeout=timeout,
            check=False,
            # Ctrl-C at the terminal is for the user's program alone.
            start_new_session=True,
        )
    except FileNotFoundError:
        return Answer(127, "", f"{command[0]}: there is no such command on this machine (PATH)")
    except OSError as error:
        return Answer(126, "", f"{command[0]}: {error.strerror or error}")
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{command[0]} did not answer within {timeout:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)


def words_of(answer: Answer) -> str:
    """Give what a command that has failed says, as part of a sentence."""
    text = " ".join((answer.err.strip() or answer.out.strip()).split()) or f"exit code {answer.code}, without a word"
    return text[:_LONGEST].rstrip(".")


def cancel_pending(name: str, job_ids: Sequence[str]) -> None:
    """Cancel those of these jobs that have not begun; from a node, for a client that is gone."""
    system = batch_system(name)
    environ = system.environ(os.environ)
    answer = run(system.query(job_ids), environ, _ALONE)
    pending = [job for job, seen in system.parse(answer.out).items() if seen.state == "pending" and job in job_ids]
    if pending:
        with contextlib.suppress(OSError):
            run(system.cancel(pending), environ, _ALONE)

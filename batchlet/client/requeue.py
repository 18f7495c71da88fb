"""Having a Slurm job started again whose run could not come to its end: once a stop, and not where Slurm does so itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Mapping

from .. import report
from ..environments import slurm_job, slurm_successor
from ..errors import ClusterLostError, TerminatedError, TimeIsUpError
from ..launch_variables import SLURM_JOB_ID

__all__ = ["Requeue"]


class Requeue:
    """What becomes of a job whose run was stopped.

    Parameters
    ----------
    environ : mapping of str to str
        The process's environment.
    max_attempts : int
        How many times the job may run.
    """

    def __init__(self, environ: Mapping[str, str], max_attempts: int) -> None:
        self._environ = environ
        self._max_attempts = max_attempts
        self._attempt = slurm_job.attempt(environ)
        self._job = environ.get(SLURM_JOB_ID, "").strip()

    def notes(self, answer: str, *, in_job: bool) -> list[str]:
        """Say what prevents it, if that is known at the start; on a laptop nobody expects it.

        Parameters
        ----------
        answer : str
            What the batch system has said of the job.
        in_job : bool
            Whether there is a job of any batch system.
        """
        if not self._job:
            return ["requeue has no effect: only a job of Slurm can be started again"] if in_job else []
        job = slurm_job.read(self._environ, answer)
        problem = self._problem(job)
        if problem:
            return [f"requeue has no effect: {problem}"]
        if job is not None and not job.requeue:
            return [
                f"job {self._job} must not be requeued: where it is stopped, another job that follows it is submitted"
            ]
        return []

    def _problem(self, job: slurm_job.JobState | None) -> str:
        if job is None:
            return ""
        if not job.batch:
            return f"job {self._job} has no batch script that could run again; submit it with sbatch"
        return ""

    def after(self, error: BaseException | None, let_go: Callable[[], object], *, time_over: bool) -> None:
        """Put the job back into the queue if `error` has stopped its run, and say so; else do nothing.

        Slurm ends the job's processes then: this one has as long as after ``scancel``, and takes no notice of that signal.

        Parameters
        ----------
        error : BaseException, optional
            What has ended the user's code.
        let_go : callable
            Ends the other processes of the run in good order; called before.
        time_over : bool
            Whether the job has come to its time limit.
        """
        stopped = isinstance(error, (TimeIsUpError, ClusterLostError)) or _is_sigterm(error)
        if not stopped or not self._job:
            return
        text, job = self._refusal(asked=time_over or not isinstance(error, TerminatedError))
        if not text:
            _ignore_sigterm()
            with contextlib.suppress(Exception):
                let_go()
            text = self._submit_successor(job) if job is not None and not job.requeue else self._requeue()
        if text:
            report.note(f"not requeued: {text}")

    def _requeue(self) -> str:
        # Before it is done: Slurm then ends at once what passes this on.
        report.note(
            f"job {self._job} goes back into the queue; attempt {self._attempt + 1} of {self._max_attempts} follows"
        )
        return slurm_job.requeue(self._environ)

    def _submit_successor(self, job: slurm_job.JobState) -> str:
        new, problem = slurm_successor.submit(self._environ, job.facts, self._attempt)
        if not problem:
            follows = f"attempt {self._attempt + 1} of {self._max_attempts}"
            report.note(f"job {self._job} must not be requeued; job {new} follows it as {follows}")
        return problem

    def _refusal(self, *, asked: bool) -> tuple[str, slurm_job.JobState | None]:
        """Say why the job is not to be started again, and what Slurm knows of it."""
        if self._attempt >= self._max_attempts:
            return f"this was attempt {self._attempt} of {self._max_attempts} (max_attempts)", None
        job = slurm_job.ask(self._environ)
        problem = self._problem(job)
        if problem:
            return problem, job
        if job is not None and job.state == "COMPLETING" and not job.preempted and not asked:
            # Cancelled by somebody, or requeued: by Slurm after the death of a node, by hand, or for a job with precedence.
            return "Slurm is ending the job already, and starts it again itself unless it was cancelled", job
        return "", job


def _is_sigterm(error: BaseException | None) -> bool:
    return isinstance(error, TerminatedError) and error.exit_code == 128 + signal.SIGTERM


def _ignore_sigterm() -> None:
    """Let Slurm's own SIGTERM not take this process's exit code away in its last moments."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

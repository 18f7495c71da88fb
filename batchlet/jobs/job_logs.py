"""The logs of a cluster's jobs: where they are, and how they end."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from ..errors import RendezvousError

__all__ = ["JobLogs"]

_PROBLEM = (
    "The directory for the jobs' logs, {}, cannot be made: {}. "
    "Name another one with rendezvous_dir= (BATCHLET_DASK_CLUSTER__RENDEZVOUS_DIR)."
)
# Lines, and characters of them all.
_TAIL = 3
_LENGTH = 600


class JobLogs:
    """The directory that the jobs of one cluster write to.

    Parameters
    ----------
    given : str, optional
        The directory that the user has named; it stays.
    directory : Path
        Where the cluster's record is.
    run_id : str
        Name of the cluster.
    """

    def __init__(self, given: str | None, directory: Path, run_id: str) -> None:
        self._given = given
        #: The cluster's own directory, which goes with it. None where the user has named one, or where its path has a blank,
        #: which batch systems' scripts do not take.
        self.own: str | None = None
        if not given and not any(map(str.isspace, str(directory))):
            self.own = str(directory / f"{run_id}.logs")

    @property
    def files(self) -> list[str]:
        """What has to go with the cluster."""
        return [self.own] if self.own is not None else []

    def make(self) -> None:
        """Make the cluster's own directory.

        Raises
        ------
        RendezvousError
            If that cannot be.
        """
        if self.own is not None:
            try:
                Path(self.own).mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise RendezvousError(_PROBLEM.format(self.own, error.strerror or error)) from None

    def remove(self) -> None:
        """Remove what `make` has made."""
        if self.own is not None:
            shutil.rmtree(self.own, ignore_errors=True)

    def end_of(self, job_id: str) -> str:
        """Give the last lines of a job's log, as part of a sentence."""
        lines: list[str] = []
        directory = self.own or self._given
        if not directory or not job_id:
            return ""
        # Neither that of job 12 for job 1, nor that of job 1_12 for job 1_1.
        own = re.compile(rf"(?<!\d){re.escape(job_id)}(?![\d_])")
        with contextlib.suppress(OSError):
            for path in sorted(path for path in Path(directory).iterdir() if own.search(path.name)):
                lines += [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return f"; its log ends: {' | '.join(lines[-_TAIL:])[-_LENGTH:]}" if lines else ""

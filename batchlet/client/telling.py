"""What the client tells for the report, and what it writes itself where rank 0 is no more."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import report, timeline
from ..environments.slurm_job import attempt
from ..errors import EndError, TerminatedError, TimeIsUpError
from ..node.rank import Rank
from ..run_report import writer
from ..run_report.book import FILES, Book
from ..settings import Settings

__all__ = ["about", "end_instead_of_rank_0", "ending"]

Told = Sequence[tuple[str, dict[str, Any]]]


def about(settings: Settings, environ: Mapping[str, str] | None = None) -> Told:
    """Say what the script is, and where its user wants files."""
    wanted = {name: settings.path(name) for name in ("report", "metrics") if getattr(settings, name)}
    told: list[Any] = [(FILES, wanted)] if wanted else []
    run = {"script": list(sys.argv), "attempt": attempt(environ or {}), "began": timeline.marks()[0][1]}
    return [*told, ("about", run)]


def ending(error: BaseException | None) -> Told:
    """Say how the user's code has left its block: what it raised, and with what the process ends because of that."""
    state, code = "done", 0
    if isinstance(error, (TerminatedError, TimeIsUpError)):
        state, code = "ended", error.exit_code
    elif isinstance(error, EndError):
        state, code = "failed", error.exit_code
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        state = "ended" if code else "done"
    elif error is not None:
        state, code = "ended", 130 if isinstance(error, KeyboardInterrupt) else 1
    told: dict[str, Any] = {"state": state, "exit_code": code}
    if state != "done":
        told |= {"kind": type(error).__name__, "message": str(error)}
    return [("ended", told)]


def end_instead_of_rank_0(rank: Rank, run_id: str, directory: str, told: Told) -> None:
    """Bring the report to its end, since rank 0 is lost: it has left what it knew when it last wrote.

    Parameters
    ----------
    rank : Rank
        This process.
    run_id : str
        Name of the run.
    directory : str
        Of reports.
    told : list
        How it has ended; see `ending`.
    """
    where = writer.place(directory, run_id)
    made = Book({})
    info = rank.info
    made.about(id=run_id, mode=info.mode, job=info.job, ranks=info.world_size)
    made.began()
    made.take([*[entry for entry in about(rank.settings, rank.environ) if entry[0] != FILES], *told])
    ours = made.report()
    found = writer.read(where) or ours
    if found["outcome"]["state"] == "running":
        shift = ours["time"]["began"] - found["time"]["began"]
        found["outcome"] |= {name: ours["outcome"][name] for name in ("state", "error", "exit_code")}
        for name in ("ended", "updated"):
            found["time"][name] = round(ours["time"][name] + shift, 3)
        found["events"] += [{**event, "at": round(event["at"] + shift, 3)} for event in ours["events"]]
    from ..run_report.finishing import finish

    try:
        finish(where, found)
    except OSError as error:
        report.note(f"no report in {directory}: {error.strerror or error}")

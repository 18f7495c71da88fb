"""What is said when a cluster is ready: the line at the start, and where the dashboard is."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

from .. import report, timeline
from ..errors import EndError
from ..network import LOOPBACK, in_url
from ..node.attach import worker_ranks_attach_early
from ..node.rank import Rank
from ..plan import LOCAL
from ..settings import Settings
from .backend import Backend, StartInfo

__all__ = ["advice", "announce", "dashboard_at", "dashboard_link", "dashboard_tunnel"]

# Seconds above which what the ranks have done for nothing is worth a word.
_LOST = 2.0


def announce(backend: Backend, start: StartInfo) -> None:
    """Say what is running; the dashboard's address, which is secret, in a file where others can read along."""
    rank = backend.rank
    link, tunnel = dashboard_link(start), dashboard_tunnel(rank, start)
    hidden = (
        start.token is not None
        and link is not None
        and report.others_may_read(shared=rank.environment.output_is_shared(rank.environ))
    )
    report.started(
        where=f"{rank.info.mode} {rank.info.job}".strip(),
        ranks=rank.info.world_size,
        nodes=start.nodes,
        workers=start.workers,
        threads=start.threads,
        memory=start.memory,
        dashboard=link,
        tunnel=tunnel,
        secure=rank.settings.security is not False,
        protocol=rank.settings.protocol,
        instead=_tell_owner(backend, [link, tunnel]) if hidden else None,
    )
    if start.run_id is None:
        return
    if rank.settings.join and rank.role != LOCAL:
        report.note(f"more nodes: python -m batchlet join {shlex.quote(_record_of(rank, start.run_id))}")
    if rank.settings.attach:
        report.note(f"attach: python -m batchlet attach {shlex.quote(start.run_id)} (or top, dashboard)")


def advice(rank: Rank) -> str:
    """Say what would have saved time, where all ranks have come here with Dask imported and most of them for nothing."""
    seconds = timeline.age()
    early = "batchlet.early" in sys.modules or not worker_ranks_attach_early(rank.environ)
    if early or "distributed" not in sys.modules or seconds < _LOST:
        return ""
    return (
        f"{rank.info.world_size - 2} ranks ran the first {seconds:.0f} s of the script for nothing, which "
        "`from batchlet.early import BatchletRunner` above the other imports saves"
    )


def dashboard_link(start: StartInfo) -> str | None:
    """Address of the dashboard; `None` if there is none."""
    return None if start.dashboard is None else dashboard_at(start.dashboard, start.token)


def dashboard_at(place: tuple[str, int], token: str | None) -> str:
    """Address of the dashboard that listens at a place, under the secret part of its path."""
    host, port = place
    shown = "localhost" if host == LOOPBACK else in_url(host)
    return f"http://{shown}:{port}{'/' + token if token else ''}/status"


def _tell_owner(backend: Backend, lines: list[str | None]) -> str:
    """Leave the dashboard's address in a file for the run's owner alone, and say where."""
    try:
        path = backend.note("".join(f"{line}\n" for line in lines if line))
    except EndError:
        where = backend.rank.settings.rendezvous_dir
        return f"runner.dashboard_link has it (others may read this, and {where} cannot be written)"
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return f"cat {shlex.quote(str(path))}"


def _record_of(rank: Rank, run_id: str) -> str:
    """Name the record of a run as `python -m batchlet join` takes it: by the run's name where that is found by itself."""
    usual, ours = Settings().rendezvous_dir, rank.settings.rendezvous_dir
    return run_id if ours == usual else str(Path(ours).expanduser().absolute() / f"{run_id}.json")


def dashboard_tunnel(rank: Rank, start: StartInfo) -> str | None:
    """Give the command that brings the dashboard to the user's own machine; `None` where the user is here."""
    place, here = start.dashboard, rank.info.mode == "local" and "SSH_CONNECTION" not in os.environ
    if here or place is None or place[0] != LOOPBACK:
        return None
    login = rank.environment.login_host(rank.environ)
    jump = f" -J {login}" if login and login != start.node else ""
    return f"ssh -N -L {place[1]}:localhost:{place[1]}{jump} {start.node}"

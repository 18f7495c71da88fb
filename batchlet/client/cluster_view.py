"""A run as one of Dask's cluster objects, for people and libraries that know those, and how it shows itself in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, Any, NoReturn

from .. import report
from ..errors import UsageError
from ..planned import shown
from ..run_report.log_lines import LogLine, written
from ..settings import describe_bytes
from . import dask_clients
from .announce import dashboard_link, dashboard_tunnel

if TYPE_CHECKING:
    from .session import Session

__all__ = ["ClusterView", "html", "warnings_of"]


class ClusterView:
    """What Dask's clusters offer beside their start and end, for a run that is under way.

    It asks the scheduler by a client of its own, which is made when the first question is asked: the user's may be asynchronous
    or closed.

    Parameters
    ----------
    session : Session
        The run.
    runner : BatchletRunner
        The cluster object.
    """

    def __init__(self, session: Session, runner: Any) -> None:
        self._session = session
        self._runner = runner
        self._own: Any = None
        self._lock = threading.Lock()

    def client(self) -> Any:
        """Give the user's current client if it is one of this cluster, else a new one."""
        from distributed import Client

        try:
            current = Client.current()
        except ValueError:
            current = None
        if current is not None and current.cluster is self._runner:
            return current
        return Client(self._runner, asynchronous=self._session.asynchronous)

    def loop(self) -> Any:
        """Give the event loop that the (synchronous) clients of this cluster share; `None` before there is one."""
        start = self._session.start_info
        if start is None or self._session.asynchronous:
            return None
        return next((client.loop for client in dask_clients.synchronous(start.address)), None)

    def scheduler_info(self) -> Any:
        """Ask the scheduler for what `Client.scheduler_info` has, of all workers; after the end none are left."""
        if self._session.state == "closed":
            # dask-labextension describes a cluster that it has just closed.
            return {"type": "Scheduler", "workers": {}}
        return self._ask("scheduler_info", lambda client: client.scheduler_info(n_workers=-1))

    def workers(self) -> dict[Any, Any]:
        """Give what the scheduler knows of each worker, by the worker's name."""
        return {known["name"]: known for known in self.scheduler_info()["workers"].values()}

    def wait_for_workers(self, n_workers: int, timeout: Any) -> Any:
        """Wait for workers, here or (in asynchronous mode) when awaited."""
        return self._later("wait_for_workers", lambda client: client.wait_for_workers(n_workers, timeout))

    def logs(self, *, cluster: bool, scheduler: bool, workers: bool | Iterable[str]) -> Any:
        """Give what Dask's clusters give: a mapping that shows itself, of texts of the scheduler and of each worker."""

        def ask(client: Any) -> Any:
            from distributed.utils import Log, Logs

            def text(lines: Any) -> Any:
                # The newest comes first.
                return Log("\n".join(line for _, line in reversed(lines or ())))

            logs = Logs()
            if cluster:
                logs["Cluster"] = Log(repr(self._session))
            if scheduler:
                logs["Scheduler"] = text(client.get_scheduler_logs())
            if workers is not False:
                found = client.get_worker_logs(workers=None if workers is True else list(workers))
                logs.update({address: text(lines) for address, lines in found.items()})
            if workers is True:
                logs.update(warnings_of(*self._session._backend.logs()))
            return logs

        return self._later("get_logs", ask)

    def refuse_to_scale(self, what: str) -> NoReturn:
        """Say why this cluster has a fixed size."""
        self._session.refuse(
            UsageError(
                f"{what}() cannot be: this cluster is made of the processes that the launcher has started, and keeps its size. "
                "Start more ranks (srun -n, mpirun -n) or ask for workers_per_node=; the clusters of dask-jobqueue grow."
            )
        )

    def _ask(self, what: str, question: Callable[[Any], Any]) -> Any:
        start = self._session.started(what)
        with self._lock:
            if self._own is None or self._own.status != "running":
                from distributed import Client

                self._own = Client(
                    start.address, security=start.security, set_as_default=False, asynchronous=False, loop=self.loop()
                )
        return question(self._own)

    def _later(self, what: str, question: Callable[[Any], Any]) -> Any:
        if self._session.asynchronous:
            return asyncio.to_thread(self._ask, what, question)
        return self._ask(what, question)


def warnings_of(lines: list[LogLine], dropped: int) -> dict[str, Any]:
    """Give what was said at level "warning" and above as one more log; none where nothing was said.

    Parameters
    ----------
    lines : list of LogLine
        In their order.
    dropped : int
        How many were left out.
    """
    from distributed.utils import Log

    texts = [written(line) for line in lines]
    if dropped:
        texts.append(f"{report.count(dropped, 'more line')} not kept")
    return {"Warnings": Log("\n".join(texts))} if texts else {}


def html(session: Session) -> str:
    """Show a run in a notebook: the workers, the limits with their sources, the dashboard.

    Without colours of its own, so that it is readable on a dark page too.
    """
    state, start = session.state, session.start_info
    lost = session._backend.root_cause() if state == "running" else None
    rows = [("state", escape(state if lost is None else f"lost: {lost}"))]
    limits = ""
    if start is not None and state == "running" and lost is None:
        threads, memory = (_range(map(str, start.threads)), _range(describe_bytes(size) for size in start.memory))
        nodes = f" on {start.nodes} nodes" if start.nodes > 1 else ""
        rows.append(
            (
                "workers",
                escape(f"{start.workers}{nodes}, each {threads} {'thread' if threads == '1' else 'threads'}, {memory}"),
            )
        )
        rows.append(("scheduler", escape(start.address)))
        link, tunnel = dashboard_link(start), dashboard_tunnel(session.rank, start)
        if link is not None:
            rows.append(("dashboard", f'<a href="{escape(link)}" target="_blank" rel="noreferrer">{escape(link)}</a>'))
        if tunnel is not None:
            rows.append(("tunnel", f"<code>{escape(tunnel)}</code>"))
        figures = "".join(
            _row(name, escape(shown(name, figure.value)), escape(figure.source))
            for name, figure in start.plan.figures.items()
        )
        limits = (
            f"<details><summary>Limits of node {escape(start.plan.node)}, and where they come from"
            f"{'' if start.plan.workers else ' (of the workers: <code>python -m batchlet --plan</code>)'}</summary>"
            f"<table>{figures}</table></details>"
        )
    table = "".join(_row(name, value) for name, value in rows)
    rank = session.rank
    return (
        f"<div><strong>BatchletRunner</strong> {escape(rank.info.run_id)} ({escape(rank.info.mode)}, {escape(rank.role)})"
        f"<table>{table}</table>{limits}</div>"
    )


def _row(name: str, *values: str) -> str:
    """Write a row; what is in `values` is HTML."""
    cells = "".join(f'<td style="text-align: left">{value}</td>' for value in values)
    return f'<tr><th style="text-align: left">{escape(name)}</th>{cells}</tr>'


def _range(texts: Iterable[str]) -> str:
    low, high = texts
    return low if low == high else f"{low} to {high}"

"""One process of a run: who it is, what the user asked for, and from these, once the facts are known, the plan of its node."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..binding import bind_plan
from ..cuda_workers import choose_in_plan
from ..environments import Environment, Figure, ProcessInfo, select
from ..errors import BatchletError, EndError
from ..network import reachable_host
from ..plan import WORKER, Plan, hosts_workers, make_plan, role_of
from ..rendezvous import CoordinatorRecord, FileRendezvous, register
from ..resources import HostFacts, node_resources, read_host
from ..security import dashboard_token
from ..settings import Settings

__all__ = ["PATIENCE", "Facts", "Rank", "unexpected"]

#: Seconds by which a rank's own patience exceeds rank 0's, so that rank 0, who knows who is missing, speaks first.
PATIENCE = 5.0

# What rank 0 knows about each node: bytes of memory according to the launcher's controller, and the source of that.
Facts = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Rank:
    """One process of a run.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    environment : Environment
        How the process was started.
    reason : str
        Why that is believed.
    info : ProcessInfo
        Who it is.
    environ : mapping of str to str
        The launcher's variables.
    began : float
        When it began, in seconds of `time.monotonic`.
    """

    settings: Settings
    environment: Environment
    reason: str
    info: ProcessInfo
    environ: Mapping[str, str]
    began: float

    @classmethod
    def identify(
        cls, settings: Settings, environ: Mapping[str, str], began: float, *, layout: Sequence[Any] | None = None
    ) -> Rank:
        """Find out who a process is from its environment.

        Parameters
        ----------
        settings : Settings
            What the user asked for.
        environ : mapping of str to str
            The launcher's variables.
        began : float
            When it began, in seconds of `time.monotonic`.
        layout : sequence, optional
            The ranks of its node and the number of nodes, where the variables allow a guess only.

        Raises
        ------
        LauncherError
            If a launcher's variable is missing or malformed.
        """
        environment, reason = select(settings.mode, environ)
        rank = cls(settings, environment, reason, environment.identity(environ), environ, began)
        return rank if layout is None else rank.placed(*layout)

    def placed(self, local_ranks: Sequence[int], nodes: int) -> Rank:
        """Give this rank with another knowledge of which ranks share its node."""
        return replace(self, info=replace(self.info, local_ranks=tuple(local_ranks), nodes=nodes))

    @property
    def deadline(self) -> float:
        """When all workers must have joined, in seconds of `time.monotonic`."""
        return self.began + self.settings.start_timeout

    @property
    def role(self) -> str:
        """What this rank is."""
        return role_of(self.info, self.info.rank)

    @property
    def participant(self) -> str:
        """What this rank is called as one that brings workers; a head rank is somebody itself."""
        return str(self.info.rank) if self.role == WORKER else f"{self.info.rank}w"

    @property
    def has_workers_beside(self) -> bool:
        """Whether this head rank has workers of its own, which the agent of its node hosts."""
        rank = self.info.rank
        return self.role != WORKER and rank in self.info.local_ranks and hosts_workers(self.info, self.settings, rank)

    @property
    def local_worker_ranks(self) -> int:
        """How many ranks of this node host workers."""
        return sum(hosts_workers(self.info, self.settings, rank) for rank in self.info.local_ranks)

    @property
    def task_environ(self) -> Mapping[str, str]:
        """The environment for the user's code."""
        return self.environment.task_environ(self.environ)

    @property
    def workers_expected(self) -> int:
        """About how many workers will come, on all nodes together."""
        return max(self.info.world_size, self.info.nodes * (self.settings.workers_per_node or 0))

    def plan(self, facts: Facts | None = None, host: HostFacts | None = None, own_gpus: bool | None = None) -> Plan:
        """Plan this node.

        Parameters
        ----------
        facts : mapping, optional
            What rank 0 knows.
        host : HostFacts, optional
            What can be seen of the host, if that is known already.
        own_gpus : bool, optional
            Whether this rank's GPUs are its own, where the launcher does not tell and that has been found out.

        Raises
        ------
        PlanError
            If more was asked for than the node has, or workers cannot be of the kind that was asked for.
        """
        known = (facts or {}).get(self.info.node)
        figure = Figure(int(known[0]), str(known[1])) if known else None
        grant, host = self.environment.granted(self.environ), host or read_host()
        if own_gpus is not None and grant.gpus is not None:
            grant = replace(grant, gpus=replace(grant.gpus, bound=own_gpus))
        resources = node_resources(grant, host, figure)
        plan = make_plan(self.info, resources, self.settings)
        plan = choose_in_plan(plan, self.settings)
        return bind_plan(plan, resources, host, self.settings, in_job=grant.cpus is not None)

    def reachable_host(self) -> str:
        """Address of this node; see `batchlet.network.reachable_host`. Other nodes may come to a run that has one."""
        nodes = max(2, self.info.nodes) if self.settings.stays_open else self.info.nodes
        return reachable_host(self.info.node, nodes, self.settings.interface)

    def dashboard_token(self, record: CoordinatorRecord) -> str | None:
        """The secret part of the dashboard's address; `None` where the dashboard is open."""
        return None if self.settings.security is False else dashboard_token(record.secret)

    def notes(self, record: CoordinatorRecord | None, directory: str | None = None) -> FileRendezvous:
        """Where the client leaves a note for the run's owner, however the ranks meet; rank 0 removes it if need be.

        Parameters
        ----------
        record : CoordinatorRecord, optional
            The run's; a step in an allocation has its own name for the run, the record has one that both sides know.
        directory : str, optional
            Other than that in which the ranks meet.
        """
        run_id = record.run_id if record is not None else self.info.run_id
        return FileRendezvous(directory or self.settings.rendezvous_dir, run_id, self.info.node)

    def remove_orphan(self, record: CoordinatorRecord) -> None:
        """Remove the record that a dead rank 0 has left for those who join the run later; that of another run stays."""
        kept = self.notes(record)
        if kept.latest() == record:
            kept.withdraw(orphaned=True)
        register.leave(record)


def unexpected(error: Exception, where: str) -> EndError:
    """Make the report of an error that nobody foresaw, with the last lines of its traceback."""
    tail = "".join(traceback.format_exception(error)[-3:]).rstrip()
    return BatchletError(f"{where} failed:\n{tail}")

"""The captured jobs of data/*.json (see data/capture.py), and the rule that every node's plan must keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batchlet.environments.base import Figure, ProcessInfo
from batchlet.environments.slurm import SlurmAllocation, SlurmStep
from batchlet.errors import PlanError
from batchlet.plan import Plan, make_plan
from batchlet.resources import HostFacts, NodeResources, node_resources
from batchlet.settings import Settings, parse_bytes

DATA = Path(__file__).parent / "data"
GIB = 1 << 30

# The nodes of the cluster on which the jobs were captured.
NODE_CPUS = 8
NODE_MEMORY = 4 * GIB


@dataclass(frozen=True)
class Task:
    """One task of a captured job: its variables, and the memory cgroup limit around it."""

    env: Mapping[str, str]
    cgroup_memory: int | None

    @property
    def host(self) -> HostFacts:
        limit = None if self.cgroup_memory is None else Figure(self.cgroup_memory, "memory.limit_in_bytes")
        return HostFacts(NODE_CPUS, NODE_CPUS, NODE_MEMORY, limit)


@dataclass(frozen=True)
class Shape:
    """A captured job."""

    name: str
    command: str
    tasks: tuple[Task, ...] = field(repr=False)

    @property
    def is_step(self) -> bool:
        return "SLURM_STEP_ID" in self.tasks[0].env


def _load(file: Path) -> Shape:
    data = json.loads(file.read_text())
    tasks = []
    for rank in data["ranks"]:
        seen = rank.pop("seen")
        tasks.append(Task({**data["common"], **rank}, seen["cgroup_memory"]))
    return Shape(file.stem, data["command"], tuple(tasks))


SHAPES = {file.stem: _load(file) for file in sorted(DATA.glob("*.json"))}
STEPS = {name: shape for name, shape in SHAPES.items() if shape.is_step}
ALLOCATIONS = {name: shape for name, shape in SHAPES.items() if not shape.is_step}


def nodes_of(shape: Shape) -> dict[str, list[tuple[ProcessInfo, NodeResources]]]:
    """What each task of a captured job finds out, by node."""
    slurm = SlurmStep()
    nodes: dict[str, list[tuple[ProcessInfo, NodeResources]]] = {}
    for task in shape.tasks:
        info = slurm.process(task.env)
        nodes.setdefault(info.node, []).append((info, node_resources(slurm.grant(task.env), task.host)))
    return nodes


def nodes_of_allocation(shape: Shape) -> dict[str, list[tuple[ProcessInfo, NodeResources]]]:
    """What the one process of a captured allocation knows of each node."""
    (task,) = shape.tasks
    return {info.node: [(info, node_resources(grant, task.host))] for info, grant in SlurmAllocation().nodes(task.env)}


def settings_of(**keywords: object) -> Settings:
    return Settings.resolve(keywords, {})


def asked_bytes(asked: object, usable: int) -> int | None:
    """The memory limit that `memory_per_worker` asks for, read independently of batchlet.plan."""
    if isinstance(asked, float):
        return int(asked * usable)
    return parse_bytes(asked) if isinstance(asked, str) else asked  # type: ignore[return-value]


@dataclass(frozen=True)
class Node:
    """Who lives on a node, and what the heads may keep for themselves; told independently of batchlet.plan."""

    hosts: tuple[int, ...]
    heads: int
    ranks: int
    local: bool
    colocated: bool  # the heads share their ranks, or their node, with workers

    @classmethod
    def of(cls, info: ProcessInfo, colocate: str) -> Node:
        if info.world_size == 1 and info.client_rank is not None:
            return cls(info.local_ranks, 1, 1, local=True, colocated=False)
        heads = {rank for rank in info.local_ranks if rank in (0, info.client_rank)}
        alone = info.world_size <= 2 or len(info.local_ranks) == 1
        working = heads if colocate == "true" or (colocate == "auto" and alone) else set()
        hosts = tuple(rank for rank in info.local_ranks if rank not in heads or rank in working)
        return cls(
            hosts,
            len(heads) + info.extra_clients,
            len(info.local_ranks),
            local=False,
            colocated=bool(info.extra_clients or working),
        )

    def heads_memory(self, usable: int, count: int) -> int:
        """A head's share: one of the equal parts, never more than a rank's part where the heads are ranks of their own."""
        parts = count + self.heads
        return self.heads * (usable // (parts if self.local or self.colocated else max(self.ranks, parts)))

    def heads_cpus(self, cpus: int) -> int:
        """The most that the heads may keep: none in one process, one each beside workers, else a rank's part each."""
        if self.local:
            return 0
        return self.heads if self.colocated else self.heads * (cpus // self.ranks)


def assert_rule(
    infos: list[ProcessInfo], resources: NodeResources, options: Mapping[str, object], plans: list[Plan]
) -> None:
    """Check the plans of one node's ranks against the allocation.

    Threads sum to no more than the CPUs; memory limits to no more than what the headroom and the heads leave; and
    where sizes are inferred, the workers use at least nine tenths of what is theirs.
    """
    assert all(plan.workers == plans[0].workers for plan in plans), "the ranks of a node disagree on its workers"
    workers = plans[0].workers
    ranks = infos[0].local_ranks
    node = Node.of(infos[0], str(options.get("colocate", "auto")))
    hosts = node.hosts
    cpus, count = resources.cpus.value, len(workers)
    usable = int(resources.memory.value * (1 - float(options.get("memory_headroom_frac", 0))))  # type: ignore[arg-type]
    if not hosts:
        assert workers == ()
        return

    assert count >= 1
    assert len({worker.name for worker in workers}) == count, "two workers have the same name"
    assert {worker.rank for worker in workers} <= set(hosts), "a rank hosts a worker that should not"
    assert all(worker.threads >= 1 and worker.memory >= 1 for worker in workers), "0 means no limit to Dask"

    threads = sum(worker.threads for worker in workers)
    workers_per_node, threads_per_worker = options.get("workers_per_node"), options.get("threads_per_worker")
    if threads > cpus:
        # --overcommit: the launcher was told of more tasks than there are CPUs.
        tasks = max(len(hosts), infos[0].slots or 0)
        assert workers_per_node is None
        assert threads_per_worker is None
        assert count <= tasks
        assert tasks > cpus
        assert {worker.threads for worker in workers} == {1}

    may = usable - node.heads_memory(usable, count)
    memory = sum(worker.memory for worker in workers)
    assert memory <= may, f"{memory} bytes of limits, {may} were free"

    if workers_per_node is not None:
        assert count == workers_per_node
    if threads_per_worker is not None:
        assert {worker.threads for worker in workers} == {threads_per_worker}
    asked = asked_bytes(options.get("memory_per_worker"), usable)
    if asked is None:
        assert memory >= 0.9 * may
    else:
        assert {worker.memory for worker in workers} == {asked}
    for rank in ranks:
        here = [worker.threads for worker in workers if worker.rank == rank]
        assert sum(here) <= max(1, resources.cpus_per_rank.value) or threads > cpus, (
            "more threads than the rank's CPU mask has CPUs"
        )
    unbound = resources.cpus_per_rank.value >= cpus
    heads_cpus = node.heads_cpus(cpus)
    if threads_per_worker is None and unbound:
        assert threads >= 0.9 * (cpus - heads_cpus)
    elif workers_per_node is None and asked is None and unbound:
        assert cpus - heads_cpus - threads < threads_per_worker, "one more worker would have fitted"  # type: ignore[operator]


def plans_of(members: list[tuple[ProcessInfo, NodeResources]], options: Mapping[str, object]) -> list[Plan]:
    """What each rank of a node plans."""
    settings = settings_of(**options)
    return [make_plan(info, resources, settings) for info, resources in members]


def assert_rule_or_right_error(members: list[tuple[ProcessInfo, NodeResources]], options: Mapping[str, object]) -> None:
    """Either the plans of one node keep the rule, or what was asked for cannot fit and the refusal says so in one line."""
    infos, resources = [info for info, _ in members], members[0][1]
    refusal = None
    plans: list[Plan] = []
    try:
        plans = plans_of(members, options)
    except PlanError as error:
        refusal = str(error)
    if refusal is None:
        assert_rule(infos, resources, options, plans)
    else:
        assert cannot_fit(infos, resources, options), refusal
        assert "\n" not in refusal


def cannot_fit(infos: list[ProcessInfo], resources: NodeResources, options: Mapping[str, object]) -> bool:
    """Whether what was asked for may be refused, by sums that are made here."""
    node = Node.of(infos[0], str(options.get("colocate", "auto")))
    cpus = resources.cpus.value
    usable = int(resources.memory.value * (1 - float(options.get("memory_headroom_frac", 0))))  # type: ignore[arg-type]
    count = int(options.get("workers_per_node", 1))  # type: ignore[call-overload]
    threads = int(options.get("threads_per_worker", 1))  # type: ignore[call-overload]
    size = asked_bytes(options.get("memory_per_worker"), usable) or 0
    if infos[0].world_size == 2 and options.get("colocate") == "false":
        return True  # scheduler and client, and nobody to work
    return bool(node.hosts) and (
        count * threads > cpus - node.heads_cpus(cpus)
        or -(-count // len(node.hosts)) * threads > resources.cpus_per_rank.value
        or count * size > usable - node.heads_memory(usable, count)
        # Less than a MiB is no memory limit that any worker could live with.
        or ("memory_per_worker" in options and size < 1 << 20)
    )

"""From who I am, what the node grants and what was asked for to the workers of a node: the rule, for every shape of job."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchlet.environments.base import Figure, ProcessInfo
from batchlet.errors import PlanError
from batchlet.plan import CLIENT, LOCAL, SCHEDULER, WORKER, make_plan, role_of
from batchlet.resources import NodeResources

from .shapes import (
    ALLOCATIONS,
    GIB,
    SHAPES,
    STEPS,
    Node,
    assert_rule,
    assert_rule_or_right_error,
    nodes_of,
    nodes_of_allocation,
    plans_of,
    settings_of,
)

ASKED = [
    {name: value for name, value in zip(("workers_per_node", "threads_per_worker", "memory_per_worker"), values, strict=True)
     if value is not None}
    for values in product((None, 1, 3), (None, 1, 2), (None, "128MiB", 0.2))
]  # fmt: skip


def node(ranks, world_size, cpus, memory, *, per_rank=None) -> tuple[list[ProcessInfo], NodeResources]:
    """A node by hand: what each of its ranks is, and what they may use."""
    infos = [
        ProcessInfo("local" if world_size == 1 else "slurm", rank, world_size, "n1", 1, tuple(ranks), "run")
        for rank in ranks
    ]
    whole = Figure(cpus, "SLURM_CPUS_ON_NODE")
    return infos, NodeResources(
        whole, whole if per_rank is None else Figure(per_rank, "CPU affinity"), Figure(memory, "SLURM_MEM_PER_NODE")
    )


def plan_of(ranks, world_size, cpus, memory, *, per_rank=None, **options):
    infos, resources = node(ranks, world_size, cpus, memory, per_rank=per_rank)
    return make_plan(infos[0], resources, settings_of(**options))


@pytest.mark.parametrize("headroom", [0, 0.25])
@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(map(str, asked.values())) or "nothing")
def test_every_node_of_every_real_job_keeps_the_rule_or_says_what_does_not_fit(asked, headroom):
    for shape in STEPS.values():
        for members in nodes_of(shape).values():
            assert_rule_or_right_error(members, {**asked, "memory_headroom_frac": headroom})


@pytest.mark.parametrize("headroom", [0, 0.25])
@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(map(str, asked.values())) or "nothing")
@pytest.mark.parametrize("shape", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_every_node_of_every_real_allocation_keeps_the_rule_or_says_what_does_not_fit(
    tmp_path, monkeypatch, shape, asked, headroom
):
    # This machine's own scontrol, if it has one, knows nothing of the captured job.
    monkeypatch.setenv("PATH", str(tmp_path))
    nodes = nodes_of_allocation(shape)
    assert len(nodes) == 2
    for members in nodes.values():
        assert_rule_or_right_error(members, {**asked, "memory_headroom_frac": headroom})


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_a_real_job_that_asks_for_nothing_gets_one_worker_on_every_rank_that_works(shape):
    for members in nodes_of(shape).values():
        for (info, _), plan in zip(members, plans_of(members, {}), strict=True):
            if info.world_size == 1:
                assert {worker.rank for worker in plan.workers} == {0}
            else:
                hosts = Node.of(info, "auto").hosts
                assert [worker.name for worker in plan.hosted] == [rank for rank in hosts if rank == info.rank]


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_the_memory_of_a_real_job_is_never_more_than_its_cgroup(shape):
    for (_, resources), task in zip(
        (member for members in nodes_of(shape).values() for member in members), _by_node(shape), strict=True
    ):
        assert resources.memory.value <= (task.cgroup_memory or resources.memory.value)


def _by_node(shape):
    order: dict[str, list] = {}
    for task in shape.tasks:
        order.setdefault(task.env["SLURMD_NODENAME"], []).append(task)
    return [task for tasks in order.values() for task in tasks]


def test_a_step_with_less_memory_than_its_job_keeps_to_its_own():
    ((_, resources), *_), *_ = nodes_of(SHAPES["sbatch_step_own_mem"]).values()
    assert SHAPES["sbatch_step_own_mem"].tasks[0].env["SLURM_MEM_PER_NODE"] == "2048"
    assert resources.memory == Figure(GIB // 2, "memory.limit_in_bytes")


@pytest.mark.parametrize(("rank", "role"), [(0, SCHEDULER), (1, CLIENT), (2, WORKER), (3, WORKER)])
def test_the_first_two_ranks_are_the_heads_and_all_others_work(rank, role):
    infos, resources = node(range(4), 4, 8, GIB)
    assert role_of(infos[0], rank) == make_plan(infos[rank], resources, settings_of()).role == role


def test_a_process_alone_is_all_in_one():
    assert plan_of([0], 1, 8, GIB).role == LOCAL


def test_where_the_client_is_no_rank_all_ranks_but_the_first_work():
    infos, _ = node(range(4), 4, 8, GIB)
    assert [role_of(replace(infos[0], client_rank=None), rank) for rank in range(4)] == [
        SCHEDULER,
        WORKER,
        WORKER,
        WORKER,
    ]


# By hand: figures that a person can check


@pytest.mark.parametrize(
    ("ranks", "options", "threads", "mib"),
    [
        # 4 ranks on one node of 8 CPUs and 4 GiB: two heads with a quarter each, two workers.
        (range(4), {}, [2, 2], 1024),
        (range(4), {"memory_headroom_frac": 0.25}, [2, 2], 768),
        # Fewer, larger workers: the heads keep a rank's share and do not grow.
        (range(4), {"workers_per_node": 1}, [4], 2048),
        # More, smaller ones: each head is one share of five.
        (range(4), {"workers_per_node": 3}, [2, 2, 2], None),
        (range(4), {"threads_per_worker": 1}, [1, 1, 1, 1], None),
        (range(4), {"threads_per_worker": 4}, [4], 2048),
        (range(4), {"memory_per_worker": "1GiB"}, [2, 2], 1024),
        (range(4), {"memory_per_worker": "2GiB"}, [4], 2048),
        (range(4), {"memory_per_worker": 0.25}, [2, 2], 1024),
        # A node without heads is used whole.
        (range(4, 8), {}, [2, 2, 2, 2], 1024),
        (range(4, 7), {}, [3, 3, 2], None),
        (range(4, 8), {"workers_per_node": 1}, [8], 4096),
        (range(4, 8), {"workers_per_node": 2, "memory_per_worker": 0.5}, [4, 4], 2048),
        # One head, as under a cyclic distribution.
        ([0, 2, 4, 6], {}, [2, 2, 2], 1024),
    ],
)
def test_a_node_of_8_cpus_and_4_gib_is_divided_as_one_would_by_hand(ranks, options, threads, mib):
    plan = plan_of(list(ranks), 8, 8, 4 * GIB, **options)
    found = [worker.threads for worker in plan.workers]
    assert found == threads
    if mib is not None:
        assert {worker.memory >> 20 for worker in plan.workers} == {mib}


def test_a_node_with_both_heads_and_nobody_else_has_no_workers():
    assert plan_of([0, 1], 6, 8, GIB).workers == ()


@pytest.mark.parametrize(
    ("ranks", "world_size", "colocate", "hosts"),
    [
        ([0, 1, 2, 3], 4, "auto", {2, 3}),
        ([0, 1, 2, 3], 4, "true", {0, 1, 2, 3}),
        ([0, 1, 2, 3], 4, "false", {2, 3}),
        ([0], 4, "auto", {0}),
        ([1], 4, "auto", {1}),
        ([0], 4, "false", set()),
        ([0, 1], 4, "true", {0, 1}),
        ([0, 1], 2, "auto", {0, 1}),
        ([0], 2, "auto", {0}),
    ],
)
def test_a_head_works_too_where_its_node_would_idle_or_the_user_says_so(ranks, world_size, colocate, hosts):
    plan = plan_of(ranks, world_size, 8, 4 * GIB, colocate=colocate)
    assert {worker.rank for worker in plan.workers} == hosts


def test_heads_that_share_their_ranks_with_workers_keep_a_cpu_and_a_share_of_the_memory_each():
    plan = plan_of([0, 1], 2, 8, 4 * GIB)
    assert [worker.threads for worker in plan.workers] == [3, 3]
    assert {worker.memory for worker in plan.workers} == {GIB}


def test_workers_are_named_by_their_rank_and_then_counted():
    plan = plan_of([2, 3], 4, 8, GIB, workers_per_node=5)
    assert [worker.name for worker in plan.workers] == [2, "2-1", "2-2", 3, "3-1"]
    assert [worker.name for worker in plan.hosted] == [2, "2-1", "2-2"]


def test_overcommit_gives_each_worker_rank_one_thread():
    plan = plan_of(list(range(12)), 12, 1, 2 * GIB)
    assert [worker.threads for worker in plan.workers] == [1] * 10


def test_overcommit_with_a_number_of_workers_keeps_to_the_cpus():
    with pytest.raises(PlanError):
        plan_of(list(range(12)), 12, 4, 2 * GIB, workers_per_node=10)
    plan = plan_of(list(range(12)), 12, 4, 2 * GIB, workers_per_node=4)
    assert sum(worker.threads for worker in plan.workers) <= 4


@pytest.mark.parametrize("cpus", range(1, 65))
def test_local_divides_cpus_as_dask_does(cpus):
    from distributed.deploy.utils import nprocesses_nthreads

    plan = plan_of([0], 1, cpus, 64 * GIB)
    assert (len(plan.workers), plan.workers[0].threads) == nprocesses_nthreads(cpus)
    assert len({worker.threads for worker in plan.workers}) == 1


def test_local_workers_are_named_from_0_as_dask_does():
    assert [worker.name for worker in plan_of([0], 1, 4, GIB).workers] == [0, 1, 2, 3]


def test_a_rank_that_is_bound_to_its_own_cpus_runs_no_more_threads_than_it_has_cpus():
    plan = plan_of([4, 5], 8, 8, GIB, per_rank=2)
    assert [worker.threads for worker in plan.workers] == [2, 2]


@pytest.mark.parametrize("options", [{"workers_per_node": 8}, {"memory_per_worker": "64MiB"}], ids=str)
def test_several_workers_on_a_bound_rank_share_its_cpus_or_are_refused(options):
    try:
        plan = plan_of([4], 8, 8, GIB, per_rank=2, **options)
    except PlanError:
        return
    assert sum(worker.threads for worker in plan.workers) <= 2


@pytest.mark.parametrize("fraction", [1e-12, 1e-300])
def test_a_fraction_that_leaves_a_worker_no_memory_is_refused(fraction):
    for options in ({}, {"workers_per_node": 2}):
        with pytest.raises(PlanError):
            plan_of([4, 5], 8, 8, GIB, memory_per_worker=fraction, **options)


@pytest.mark.parametrize(
    ("ranks", "options", "said"),
    [
        (range(4), {"workers_per_node": 9}, ["9 workers", "n1", "8 CPUs", "SLURM_CPUS_ON_NODE", "workers_per_node"]),
        (
            range(4),
            {"workers_per_node": 3, "threads_per_worker": 4},
            ["3 workers x 4 threads = 12 threads", "n1", "8 CPUs", "SLURM_CPUS_ON_NODE", "threads_per_worker"],
        ),
        (
            range(4),
            {"workers_per_node": 4, "memory_per_worker": "1GiB"},
            ["4 workers x 1.00 GiB", "for scheduler and client", "n1", "4.00 GiB", "memory_per_worker"],
        ),
        (range(4), {"threads_per_worker": 9}, ["Not even one worker fits on node n1", "9 threads", "8 CPUs"]),
        (range(4), {"memory_per_worker": "5GiB"}, ["Not even one worker fits on node n1", "5.00 GiB", "4.00 GiB"]),
        (
            range(4, 8),
            {"memory_per_worker": "4GiB", "memory_headroom_frac": 0.25},
            ["4.00 GiB", "3.00 GiB of usable memory", "SLURM_MEM_PER_NODE"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sum_and_where_each_figure_is_from(ranks, options, said):
    with pytest.raises(PlanError) as caught:
        plan_of(list(ranks), 8, 8, 4 * GIB, **options)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    for part in said:
        assert part in message


def test_a_bound_rank_is_refused_more_threads_than_it_has_cpus_and_told_of_its_mask():
    with pytest.raises(PlanError, match=r"4 threads on one rank of node n1, which has 2 CPUs \(CPU affinity\)"):
        plan_of([4, 5], 8, 8, GIB, per_rank=2, workers_per_node=2, threads_per_worker=4)


def test_a_plan_shows_every_figure_with_its_source():
    shown = str(plan_of(list(range(4)), 8, 8, 4 * GIB, memory_headroom_frac=0.25))
    for name, value, source in (
        ("cpus", "8", "SLURM_CPUS_ON_NODE"),
        ("memory", "4.00 GiB", "SLURM_MEM_PER_NODE"),
        ("usable_memory", "3.00 GiB", "SLURM_MEM_PER_NODE less the headroom"),
        ("memory_headroom_frac", "0.25", "memory_headroom_frac="),
        ("workers_per_node", "2", "one per worker rank"),
        ("head_memory", "1.50 GiB", "2 of scheduler and client on this node"),
    ):
        assert re.search(rf"^ +{name} +{re.escape(value)} .*{re.escape(source)}", shown, re.MULTILINE), name
    assert re.search(r"worker 2 +.*2 threads, 768 MiB", shown)


@st.composite
def situations(draw):
    """Any node of any job, and anything that one may ask for."""
    if draw(st.booleans()):
        world_size = draw(st.integers(2, 40))
        ranks = draw(
            st.one_of(
                st.sets(st.integers(0, world_size - 1), min_size=1, max_size=16).map(sorted),
                st.integers(1, world_size).map(lambda size: list(range(size))),
            )
        )
    else:
        world_size, ranks = 1, [0]
    cpus = draw(st.integers(1, 64))
    per_rank = draw(st.one_of(st.just(cpus), st.integers(1, cpus)))
    memory = draw(st.integers(64 << 20, 1 << 40))
    options = draw(
        st.fixed_dictionaries(
            {"memory_headroom_frac": st.sampled_from([0, 0.1, 0.25, 0.5, 0.9])},
            optional={
                "workers_per_node": st.integers(1, 40),
                "threads_per_worker": st.integers(1, 20),
                "colocate": st.sampled_from(["auto", "true", "false"]),
                "memory_per_worker": st.one_of(st.integers(1 << 20, memory), st.floats(1e-3, 1.0)),
            },
        )
    )
    infos, resources = node(ranks, world_size, cpus, memory, per_rank=per_rank)
    if draw(st.integers(0, 3)) == 0:
        # An allocation: one rank on each node, the client beside them on the first one, tasks that the job asked for.
        rank, nodes = draw(st.integers(0, 3)), draw(st.integers(4, 8))
        (info,), resources = node([rank], nodes, cpus, memory)
        extra_clients = draw(st.integers(0, 1)) if rank == 0 else 0
        slots = draw(st.one_of(st.none(), st.integers(1, 80)))
        infos = [replace(info, mode="allocation", client_rank=None, extra_clients=extra_clients, slots=slots)]
    return (infos, resources), options


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(situations())
def test_whatever_the_node_and_whatever_is_asked_for_the_rule_holds_or_a_plan_error_is_right(situation):
    (infos, resources), options = situation
    assert_rule_or_right_error([(info, resources) for info in infos], options)


@settings(max_examples=100, deadline=None)
@given(situations())
def test_a_job_that_asks_for_nothing_always_has_a_plan(situation):
    (infos, resources), _ = situation
    members = [(info, resources) for info in infos]
    assert_rule(infos, resources, {}, plans_of(members, {}))

"""Workers that share a node: each on whole cores of one NUMA domain, never on CPUs that may be somebody else's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchlet import binding
from batchlet.binding import FIGURE, bind, bind_plan
from batchlet.environments.base import Figure, Grant, ProcessInfo
from batchlet.node.guest import plan_guest
from batchlet.plan import Plan, make_plan
from batchlet.resources import HostFacts, node_resources
from batchlet.topology import Domain, describe_cpus, parse_cpus, read_domains, read_topology

from .shapes import GIB, settings_of


def made_host(domains: int, cores: int, threads: int = 1) -> tuple[Domain, ...]:
    """A host whose hyperthreads are numbered as most machines have it: first one of each core, then the second ones."""
    whole = domains * cores
    return tuple(
        tuple(tuple(number + whole * thread for thread in range(threads)) for number in range(cores * at, cores * (at + 1)))
        for at in range(domains)
    )  # fmt: skip


def cpus_of(domains: Sequence[Domain]) -> list[int]:
    return sorted(cpu for domain in domains for core in domain for cpu in core)


def write_tree(root: Path, domains: Sequence[Domain], *, siblings: bool = True) -> Path:
    """Describe a host in files, as Linux does in /sys/devices/system."""
    for number, domain in enumerate(domains):
        place = root / "node" / f"node{number}"
        place.mkdir(parents=True)
        (place / "cpulist").write_text(describe_cpus(cpus_of([domain])) + "\n")
        for core in domain if siblings else ():
            for cpu in core:
                place = root / "cpu" / f"cpu{cpu}" / "topology"
                place.mkdir(parents=True)
                (place / "thread_siblings_list").write_text(describe_cpus(core) + "\n")
    (root / "node").mkdir(parents=True, exist_ok=True)
    (root / "node" / "possible").write_text(f"0-{len(domains) - 1}\n")
    return root


# The reader


@pytest.mark.parametrize("text", ["0-3,8", "0", "", "0,2,4-5"])
def test_lists_of_cpus_are_read_and_written_as_linux_has_them(text):
    assert describe_cpus(parse_cpus(text + "\n")) == text


def test_a_host_is_read_as_it_is_described(tmp_path):
    host = made_host(2, 4, threads=2)
    assert read_topology(tuple(cpus_of(host)), write_tree(tmp_path, host)) == host


def test_only_the_cpus_in_question_count(tmp_path):
    root = write_tree(tmp_path, made_host(2, 4, threads=2))
    assert read_topology((0, 1, 9, 5), root) == (((0,), (1, 9)), ((5,),))
    assert read_domains((4, 5), root) == ((4, 5),)


def test_a_domain_that_has_memory_alone_is_none(tmp_path):
    root = write_tree(tmp_path, [*made_host(2, 2), ()])
    assert read_domains((0, 1, 2, 3), root) == ((0, 1), (2, 3))


def test_more_than_ten_domains_are_in_the_order_of_their_numbers(tmp_path):
    host = made_host(12, 1)
    assert read_topology(tuple(range(12)), write_tree(tmp_path, host)) == host


@pytest.mark.parametrize("spoilt", ["no tree", "nonsense", "a CPU nowhere", "a CPU twice"])
def test_what_the_kernel_does_not_tell_is_not_guessed(tmp_path, spoilt):
    root = tmp_path / "none"
    if spoilt != "no tree":
        root = write_tree(tmp_path, made_host(2, 2))
        text = {"nonsense": "0-x", "a CPU nowhere": "0", "a CPU twice": "0-2"}[spoilt]
        (root / "node" / "node0" / "cpulist").write_text(text)
    assert read_domains((0, 1, 2, 3), root) == read_topology((0, 1, 2, 3), root) == ()


def test_without_siblings_each_cpu_is_a_core(tmp_path):
    root = write_tree(tmp_path, made_host(1, 2, threads=2), siblings=False)
    assert read_topology((0, 1, 2, 3), root) == (((0,), (1,), (2,), (3,)),)


# The rule


@st.composite
def hosts(draw) -> tuple[Domain, ...]:
    """Some of the CPUs of a host, as a job gets them."""
    host = made_host(draw(st.integers(1, 4)), draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 4])))
    granted = draw(st.sets(st.sampled_from(cpus_of(host)), min_size=1))
    kept = [tuple(own for core in domain if (own := tuple(granted.intersection(core)))) for domain in host]
    return tuple(filter(None, (tuple(tuple(sorted(core)) for core in domain) for domain in kept)))


def in_one_domain(cpus: Sequence[int], domains: Sequence[Domain]) -> bool:
    return any(set(cpus) <= set(cpus_of([domain])) for domain in domains)


@settings(max_examples=300)
@given(hosts(), st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 4), st.randoms())
def test_workers_never_share_a_cpu_never_leave_the_grant_and_never_get_less_than_their_threads(
    domains, threads, reserve, chance
):
    have = cpus_of(domains)
    found = bind(domains, tuple(threads), reserve)
    if sum(threads) + reserve > len(have):
        assert found is None
        return
    used = [cpu for own in found.cpus for cpu in own]
    assert len(used) == len(set(used)) <= len(have) - reserve
    assert set(used) <= set(have)
    assert all(len(own) >= number for own, number in zip(found.cpus, threads, strict=True))
    assert found.spread == sum(not in_one_domain(own, domains) for own in found.cpus)
    if found.whole_cores:
        assert all(
            set(core) <= set(own) or set(core).isdisjoint(own) for own in found.cpus for d in domains for core in d
        )
    # The same for the same CPUs, whoever works it out.
    bind.cache_clear()
    assert bind(domains, tuple(threads), reserve) == found
    # What is wished for changes where workers are, and nothing that must be.
    near = tuple(frozenset(chance.sample(have, 1)) for _ in threads)
    moved = bind(domains, tuple(threads), reserve, near)
    assert len(set(sum(moved.cpus, ()))) == sum(map(len, moved.cpus)) <= len(have) - reserve
    assert moved.spread <= found.spread


@settings(max_examples=300)
@given(
    st.integers(1, 4), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(1, 8), st.integers(1, 12),
    st.integers(0, 3),
)  # fmt: skip
def test_workers_of_one_size_are_in_one_domain_each_and_on_whole_cores_if_they_fit(
    numa, cores, smt, threads, workers, reserve
):
    domains = made_host(numa, cores, smt)
    found = bind(domains, (threads,) * workers, reserve)
    if found is None:
        return
    if numa * (cores * smt // threads) >= workers:
        assert found.spread == 0
    each = -(-threads // smt)
    if numa * (cores // each) >= workers and workers * each * smt + reserve <= numa * cores * smt:
        assert found.whole_cores
        assert found.spread == 0
    # As even as the domains allow.
    if workers % numa == 0 and found.spread == 0 and (workers // numa) * each <= cores and not reserve:
        assert {sum(set(own) <= set(cpus_of([d])) for own in found.cpus) for d in domains} == {workers // numa}


@pytest.mark.parametrize(
    ("domains", "threads", "reserve", "shown"),
    [
        (made_host(2, 4), (4, 4), 0, ["0-3", "4-7"]),
        (made_host(2, 4, 2), (8, 8), 0, ["0-3,8-11", "4-7,12-15"]),
        # Fewer threads than CPUs: the workers have the others too, since their libraries may have threads of their own.
        (made_host(2, 4, 2), (1, 1), 0, ["0-3,8-11", "4-7,12-15"]),
        # What is scheduler's and client's stays free.
        (made_host(2, 4), (1, 1, 1, 1, 1, 1), 2, ["0", "4", "1", "5", "2", "6"]),
        # Three threads on cores of two: whole cores, as far as there are enough of them.
        (made_host(1, 4, 2), (3, 3), 0, ["0-1,4-5", "2-3,6-7"]),
        (made_host(1, 3, 2), (3, 3), 0, ["0-1,3", "2,4-5"]),
        # Larger than a domain: as few of them as possible.
        (made_host(4, 4), (8, 8), 0, ["0-7", "8-15"]),
        # Three on two domains: one of them has to be in both.
        (made_host(2, 5), (3, 3, 3), 0, ["0-2", "5-7", "3-4,8"]),
        # Of different sizes: where even does not fit, tight does.
        ((*made_host(1, 6), ((6,), (7,), (8,), (9,))), (4, 3, 3), 0, ["6-9", "0-2", "3-5"]),
    ],
)
def test_who_gets_what(domains, threads, reserve, shown):
    assert [describe_cpus(own) for own in bind(domains, threads, reserve).cpus] == shown


def test_a_worker_is_near_what_it_is_to_be_near_where_there_is_room():
    domains = made_host(2, 4)
    second = frozenset({5})
    assert [min(own) // 4 for own in bind(domains, (2, 2), 0, (second, frozenset())).cpus] == [1, 0]
    assert [min(own) // 4 for own in bind(domains, (2, 2), 0, (second, second)).cpus] == [1, 1]
    crowded = bind(domains, (4, 4), 0, (second, second))
    assert (sorted(min(own) // 4 for own in crowded.cpus), crowded.far) == ([0, 1], 1)


# The plan


def describe(monkeypatch, root: Path) -> None:
    """Have the host described by these files."""
    monkeypatch.setattr(binding, "read_domains", lambda cpus: read_domains(cpus, root))
    monkeypatch.setattr(binding, "read_topology", lambda cpus: read_topology(cpus, root))


def plan_on(
    monkeypatch,
    tmp_path,
    domains,
    *,
    cpus=None,
    mask=None,
    mode="slurm",
    grant_is_known=True,
    host_cpus=None,
    **options,
) -> Plan:
    """The plan of a node with one rank of a run of four, on a host that is described so."""
    describe(monkeypatch, write_tree(tmp_path, domains))
    have = tuple(cpus_of(domains))
    mask = have if mask is None else mask
    host = HostFacts(host_cpus or len(have), len(mask), 64 * GIB, mask=mask)
    info = ProcessInfo(mode, 3, 4, "n4", 4, (3,), "run")
    if mode == "local":
        info = ProcessInfo(mode, 0, 1, "n4", 1, (0,), "run")

    resources = node_resources(Grant(Figure(cpus or len(mask), "SLURM_CPUS_ON_NODE")), host)
    chosen = settings_of(**options)
    return bind_plan(make_plan(info, resources, chosen), resources, host, chosen, in_job=grant_is_known)


def shown(plan: Plan) -> list[str]:
    return [describe_cpus(worker.cpus) for worker in plan.workers]


def test_a_job_with_cpus_of_two_domains_binds_its_workers_and_says_so(monkeypatch, tmp_path):
    plan = plan_on(monkeypatch, tmp_path, made_host(2, 4, 2), workers_per_node=4)
    assert shown(plan) == ["0-1,8-9", "4-5,12-13", "2-3,10-11", "6-7,14-15"]
    assert plan.figures[FIGURE] == Figure(4, "each to whole cores of one of 2 NUMA domains")
    text = plan.node_text()
    assert "  bound_workers                 4  each to whole cores of one of 2 NUMA domains" in text
    assert "rank 3, CPUs 0-1,8-9" in text
    assert plan.to_dict()["workers"][0]["cpus"] == (0, 1, 8, 9)


@pytest.mark.parametrize(
    ("why", "domains", "case"),
    [
        ("one worker has the node for itself", made_host(2, 4), {"workers_per_node": 1}),
        ("one domain: the kernel does it better", made_host(1, 8), {}),
        ("all that was granted is in one domain", made_host(2, 4), {"mask": (0, 1, 2, 3), "host_cpus": 8}),
        ("it was not wanted", made_host(2, 4), {"bind": False}),
    ],
)
def test_where_there_is_nothing_to_gain_nothing_is_bound_or_said(monkeypatch, tmp_path, why, domains, case):
    plan = plan_on(monkeypatch, tmp_path, domains, **{"workers_per_node": 2, **case})
    assert (shown(plan), FIGURE in plan.figures) == ([""] * len(plan.workers), False), why


@pytest.mark.parametrize(
    ("domains", "case", "reason"),
    [
        # Another job may have the others: no cpuset keeps this one to its own.
        (made_host(2, 4), {"cpus": 4}, "4 CPUs granted (SLURM_CPUS_ON_NODE), but which of the 8 "),
        # Each rank is bound to some of the node's CPUs, of both domains: nobody knows to which the ranks beside it are.
        (made_host(2, 4), {"mask": (3, 4), "cpus": 8}, "the launcher's binding is kept: CPU affinity"),
        # As a test cluster on a small machine has it.
        (made_host(2, 1), {"cpus": 8, "workers_per_node": 4}, "8 threads share 2 CPUs"),
        (made_host(2, 4), {"mode": "local", "grant_is_known": False}, "left to the kernel outside of jobs, unless bind=True"),
    ],
)  # fmt: skip
def test_where_workers_would_be_bound_but_cannot_the_plan_says_why(monkeypatch, tmp_path, domains, case, reason):
    plan = plan_on(monkeypatch, tmp_path, domains, **{"workers_per_node": 2, **case})
    assert not any(shown(plan))
    assert plan.figures[FIGURE].value == 0
    assert plan.figures[FIGURE].source.startswith(reason)


def test_a_host_that_does_not_tell_its_domains_binds_nobody(monkeypatch, tmp_path):
    plan = plan_on(monkeypatch, tmp_path, (), mask=(0, 1), host_cpus=2, workers_per_node=2)
    assert plan.figures[FIGURE] == Figure(0, "the host does not tell its NUMA domains (/sys/devices/system/node)")


def test_asked_for_it_is_done_on_one_domain_and_on_a_laptop_too(monkeypatch, tmp_path):
    plan = plan_on(
        monkeypatch, tmp_path, made_host(1, 2, 2), mode="local", grant_is_known=False, bind=True, workers_per_node=2
    )
    assert shown(plan) == ["0,2", "1,3"]
    assert plan.figures[FIGURE] == Figure(2, "each to whole cores")


def test_where_the_launcher_counts_cores_their_hyperthreads_are_granted_too(monkeypatch, tmp_path):
    """Half of a host of 16 cores: Slurm says 8 CPUs and binds to 16, where its configuration has a CPU for a core."""
    host = made_host(2, 4, 2)
    plan = plan_on(monkeypatch, tmp_path, host, cpus=8, host_cpus=32, workers_per_node=2)
    assert shown(plan) == ["0-3,8-11", "4-7,12-15"]
    assert [worker.threads for worker in plan.workers] == [4, 4]


def test_the_ranks_of_a_node_agree_whichever_of_them_plans(monkeypatch, tmp_path):
    describe(monkeypatch, write_tree(tmp_path, made_host(2, 8)))
    ranks = list(range(2, 10))
    host = HostFacts(16, 16, 64 * GIB, mask=tuple(range(16)))
    plans = []
    for rank in random.sample(ranks, len(ranks)):
        info = ProcessInfo("slurm", rank, 12, "n1", 2, tuple(ranks), "run")

        resources = node_resources(Grant(Figure(16, "SLURM_CPUS_ON_NODE")), host)
        plans.append(bind_plan(make_plan(info, resources, settings_of()), resources, host, settings_of()))
    assert all(plan.workers == plans[0].workers for plan in plans)
    assert sorted(cpu for plan in plans for worker in plan.hosted for cpu in worker.cpus) == list(range(16))


@pytest.mark.parametrize("in_job", [True, False])
def test_the_tasks_of_a_job_that_joins_a_run_agree_too_unless_nobody_has_granted_the_node(
    monkeypatch, tmp_path, in_job
):
    describe(monkeypatch, write_tree(tmp_path, made_host(2, 4)))
    host = HostFacts(8, 8, 64 * GIB, mask=tuple(range(8)))
    resources = node_resources(Grant(Figure(8, "NSLOTS") if in_job else None), host)
    taken = []
    for rank in range(2) if in_job else [0]:
        info = ProcessInfo(
            "slurm" if in_job else "local", rank, 2 if in_job else 1, "n9", 1, (0, 1) if in_job else (0,), "job"
        )
        taken += [
            worker.cpus
            for worker in plan_guest(info, resources, settings_of(workers_per_node=4), host, in_job=in_job)[0]
        ]
    assert sorted(taken) == ([(0, 1), (2, 3), (4, 5), (6, 7)] if in_job else [()] * 4)

"""What a node grants: every source is looked at, the least one wins, and its name is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchlet.environments.base import Figure, Grant
from batchlet.resources import HostFacts, cgroup_cpus, cgroup_memory, node_resources, read_host

from .shapes import GIB

V1_UNLIMITED = str(0x7FFFFFFFFFFFF000)
SLURM_PATH = "/slurm_n1/uid_0/job_1/step_0/task_0"


class Host:
    """A /proc and the cgroup trees it points to."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.mounts = root / "sys fs"  # a blank in the path is written \040 in mountinfo
        (self.proc / "self").mkdir(parents=True)
        self.mountinfo: list[str] = ["22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw", "nonsense", ""]
        self.cgroup: list[str] = []

    def v1(self, controllers: str, path: str, root: str = "/") -> Path:
        point = self.mounts / controllers
        point.mkdir(parents=True)
        shown = str(point).replace(" ", "\\040")
        self.mountinfo.append(
            f"30 25 0:26 {root} {shown} rw,nosuid shared:10 master:2 - cgroup cgroup rw,{controllers}"
        )
        self.cgroup.append(f"{len(self.cgroup) + 2}:{controllers}:{path}")
        return self._made(point, path, root)

    def v2(self, path: str, root: str = "/") -> Path:
        point = self.mounts / "unified"
        point.mkdir(parents=True)
        shown = str(point).replace(" ", "\\040")
        self.mountinfo.append(f"31 25 0:27 {root} {shown} rw,nosuid shared:11 - cgroup2 cgroup2 rw,nsdelegate")
        self.cgroup.append(f"0::{path}")
        return self._made(point, path, root)

    def _made(self, point: Path, path: str, root: str) -> Path:
        inside = path == root or root == "/" or path.startswith(root + "/")
        if inside:
            (point / os.path.relpath(path, root)).mkdir(parents=True, exist_ok=True)
        (self.proc / "self" / "cgroup").write_text("\n".join(self.cgroup) + "\n")
        (self.proc / "self" / "mountinfo").write_text("\n".join(self.mountinfo) + "\n")
        return point


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def write(folder: Path, **files: object) -> None:
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize(
    "level", ["", "/slurm_n1", "/slurm_n1/uid_0/job_1", "/slurm_n1/uid_0/job_1/step_0", SLURM_PATH]
)
def test_version_1_a_limit_counts_on_whichever_level_it_sits(host, level):
    point = host.v1("memory", SLURM_PATH)
    for place in [
        "",
        *(SLURM_PATH[:end] for end in range(1, len(SLURM_PATH) + 1) if SLURM_PATH[end : end + 1] in ("/", "")),
    ]:
        write(point / place.lstrip("/"), memory__limit_in_bytes=V1_UNLIMITED)
    write(point / level.lstrip("/"), memory__limit_in_bytes=2 * GIB)
    assert cgroup_memory(host.proc) == Figure(2 * GIB, str(point / level.lstrip("/") / "memory.limit_in_bytes"))


def test_the_least_of_several_limits_wins(host):
    point = host.v1("memory", SLURM_PATH)
    write(point / "slurm_n1", memory__limit_in_bytes=8 * GIB)
    write(point / "slurm_n1/uid_0/job_1", memory__limit_in_bytes=1 * GIB)
    write(point / "slurm_n1/uid_0/job_1/step_0", memory__limit_in_bytes=2 * GIB)
    assert cgroup_memory(host.proc).value == 1 * GIB


@pytest.mark.parametrize("level", ["", "/system.slice", "/system.slice/slurmstepd.scope/job_1/step_0/user/task_0"])
@pytest.mark.parametrize("file", ["memory.max", "memory.high"])
def test_version_2_both_limits_count_on_every_level(host, level, file):
    point = host.v2("/system.slice/slurmstepd.scope/job_1/step_0/user/task_0")
    write(point / "system.slice", memory__max="max", memory__high="max")
    (point / level.lstrip("/") / file).write_text(f"{3 * GIB}\n")
    assert cgroup_memory(host.proc) == Figure(3 * GIB, str(point / level.lstrip("/") / file))


def test_both_versions_side_by_side_are_both_looked_at(host):
    version_1, version_2 = host.v1("memory", "/a"), host.v2("/b")
    write(version_1 / "a", memory__limit_in_bytes=4 * GIB)
    write(version_2 / "b", memory__max=5 * GIB)
    assert cgroup_memory(host.proc).value == 4 * GIB
    write(version_2 / "b", memory__max=3 * GIB)
    assert cgroup_memory(host.proc).value == 3 * GIB


@pytest.mark.parametrize("text", [V1_UNLIMITED, "max", "", "-1", "9223372036854775807", "many", "\udcff"])
def test_what_is_no_limit_is_none(host, text):
    version_1, version_2 = host.v1("memory", "/a"), host.v2("/b")
    for file in (version_1 / "a/memory.limit_in_bytes", version_2 / "b/memory.max", version_2 / "b/memory.high"):
        file.write_bytes(text.encode(errors="surrogateescape") + b"\n")
    assert cgroup_memory(host.proc) is None


def test_a_container_sees_its_own_part_of_the_tree_at_the_mount_point(host):
    point = host.v1("memory", "/docker/abc", root="/docker/abc")
    write(point, memory__limit_in_bytes=1 * GIB)
    assert cgroup_memory(host.proc).value == 1 * GIB


def test_a_job_inside_a_container_is_found_below_the_container_root(host):
    point = host.v1("memory", "/docker/abc/job_1/task_0", root="/docker/abc")
    write(point, memory__limit_in_bytes=2 * GIB)
    write(point / "job_1", memory__limit_in_bytes=1 * GIB)
    assert cgroup_memory(host.proc).value == 1 * GIB


def test_a_cgroup_outside_the_part_that_is_mounted_leaves_the_limit_of_the_mount(host):
    point = host.v2("/somewhere/else", root="/docker/abc")
    write(point, memory__max=2 * GIB)
    write(host.mounts, memory__max=1 * GIB)  # outside the tree: must not be read
    assert cgroup_memory(host.proc).value == 2 * GIB


def test_nothing_above_the_mount_point_is_read(host):
    host.v2("/a")
    write(host.mounts, memory__max=1 * GIB)
    assert cgroup_memory(host.proc) is None


@pytest.mark.parametrize("path", ["/", "/.."])
def test_a_cgroup_namespace_shows_the_root(host, path):
    point = host.v2(path)
    write(point, memory__max=1 * GIB)
    assert cgroup_memory(host.proc).value == 1 * GIB


def test_controllers_mounted_together_are_told_apart(host):
    point = host.v1("cpu,memory", "/a")
    write(point / "a", memory__limit_in_bytes=1 * GIB, cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    assert cgroup_memory(host.proc).value == 1 * GIB
    assert cgroup_cpus(host.proc) == Figure(1.5, str(point / "a" / "cpu.cfs_quota_us"))


def test_a_controller_whose_name_begins_the_same_is_another_one(host):
    point = host.v1("cpuset", "/a")
    write(point / "a", cpu__cfs_quota_us=100000, cpu__cfs_period_us=100000)
    assert cgroup_cpus(host.proc) is None


@pytest.mark.parametrize(
    ("text", "cpus"), [("200000 100000", 2.0), ("50000 100000", 0.5), ("max 100000", None), ("", None), ("0 0", None)]
)
def test_version_2_a_cpu_quota_is_read_in_cpus(host, text, cpus):
    point = host.v2("/a/b")
    write(point / "a", cpu__max=text)
    quota = cgroup_cpus(host.proc)
    assert (quota.value if quota else None) == cpus


def test_version_1_a_quota_of_minus_one_is_none(host):
    point = host.v1("cpu", "/a")
    write(point / "a", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert cgroup_cpus(host.proc) is None


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo", "limits", "everything"])
def test_a_file_that_is_missing_is_a_source_that_says_nothing(host, missing):
    if missing != "everything":
        point = host.v1("memory", "/a")
        if missing != "limits":
            write(point / "a", memory__limit_in_bytes=1 * GIB)
            (host.proc / "self" / missing).unlink()
    assert cgroup_memory(host.proc) is None
    assert cgroup_cpus(host.proc) is None


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="no /proc on this system")
def test_this_host_is_read_without_an_error_and_within_reason():
    facts = read_host()
    assert 1 <= facts.affinity <= facts.cpus
    assert facts.memory > 64 << 20
    assert facts.cgroup_memory is None or 0 < facts.cgroup_memory.value < 1 << 60


# Settling

HOST = HostFacts(cpus=16, affinity=16, memory=64 * GIB)


def limited(**limits: object) -> HostFacts:
    return HostFacts(**({"cpus": 16, "affinity": 16, "memory": 64 * GIB} | limits))


@pytest.mark.parametrize(
    ("grant", "host", "told", "expected", "source"),
    [
        (8 * GIB, None, None, 8 * GIB, "variable"),
        (8 * GIB, 4 * GIB, None, 4 * GIB, "cgroup"),
        (4 * GIB, 8 * GIB, None, 4 * GIB, "variable"),
        (None, 4 * GIB, None, 4 * GIB, "cgroup"),
        (None, None, 6 * GIB, 6 * GIB, "scontrol"),
        (None, 8 * GIB, 6 * GIB, 6 * GIB, "scontrol"),
        (8 * GIB, 7 * GIB, 6 * GIB, 6 * GIB, "scontrol"),
        (100 * GIB, None, None, 64 * GIB, "the host's memory"),
        (None, 100 * GIB, None, 64 * GIB, "the host's memory"),
        (None, None, None, 16 * GIB, "the host's memory x 4/16 CPUs"),
    ],
)
def test_the_least_source_of_memory_wins_and_is_named(grant, host, told, expected, source):
    resources = node_resources(
        Grant(Figure(4, "SLURM_CPUS_ON_NODE"), Figure(grant, "variable") if grant else None),
        limited(cgroup_memory=Figure(host, "cgroup") if host else None),
        Figure(told, "scontrol") if told else None,
    )
    assert resources.memory == Figure(expected, source)


def test_a_host_with_more_cpus_granted_than_it_has_gives_its_whole_memory_and_no_more():
    resources = node_resources(Grant(Figure(32, "SLURM_CPUS_ON_NODE")), HOST)
    assert resources.memory == Figure(64 * GIB, "the host's memory")


@pytest.mark.parametrize(
    ("host", "cpus", "source"),
    [
        (HOST, 16, "the host's CPUs"),
        (limited(affinity=6), 6, "CPU affinity"),
        (limited(cgroup_cpus=Figure(2.5, "cpu.max")), 2, "cpu.max"),
        (limited(cgroup_cpus=Figure(0.5, "cpu.max")), 1, "cpu.max"),
        (limited(affinity=2, cgroup_cpus=Figure(2.5, "cpu.max")), 2, "CPU affinity"),
        (limited(cgroup_cpus=Figure(99.0, "cpu.max")), 16, "the host's CPUs"),
    ],
)
def test_without_a_launcher_the_mask_and_the_quota_decide_on_the_cpus(host, cpus, source):
    assert node_resources(Grant(), host).cpus == Figure(cpus, source)


@pytest.mark.parametrize(
    ("granted", "affinity", "per_rank"),
    [(8, 16, 8), (8, 8, 8), (8, 2, 2), (8, 1, 1), (32, 16, 32), (32, 8, 8)],
)
def test_a_rank_that_is_bound_to_fewer_cpus_than_its_node_has_keeps_to_them(granted, affinity, per_rank):
    resources = node_resources(Grant(Figure(granted, "SLURM_CPUS_ON_NODE")), limited(affinity=affinity))
    assert resources.cpus.value == granted
    assert resources.cpus_per_rank.value == per_rank
    if per_rank < granted:
        assert f"SLURM_CPUS_ON_NODE says {granted}" in resources.cpus_per_rank.source

"""GPUs: which ones the variables name, and which worker gets which, for every shape of job."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchlet import cuda_workers
from batchlet.cuda_workers import choose_in_plan
from batchlet.environments import Local
from batchlet.environments.base import Figure, ProcessInfo
from batchlet.environments.slurm import SlurmAllocation, SlurmStep
from batchlet.errors import PlanError
from batchlet.gpus import NO_GPUS, Gpus, granted
from batchlet.jobs.sizing import fit, size_of_job
from batchlet.jobs.systems import batch_system
from batchlet.nvidia import host_gpus, near_cpus, read_gpus
from batchlet.plan import make_plan
from batchlet.resources import NodeResources, node_resources, read_host

from .shapes import GIB, SHAPES, settings_of

A, B = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-0a1b2c3d-0000-1111-2222-333344445555"
MIG = "MIG-41b3359c-e721-56e5-8009-12e5797ed514"
CUDA, ROCR, HIP, ORDINAL, ZE = (
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
)  # fmt: skip


# Variables, on a host of AMD's alone; what the first of two workers sees, and the second.
@pytest.mark.parametrize(
    ("environ", "amd", "first", "second"),
    [
        ({CUDA: "0,1"}, False, {CUDA: "0,1"}, {CUDA: "1,0"}),
        ({CUDA: "2,3,5"}, False, {CUDA: "2,3,5"}, {CUDA: "3,5,2"}),
        ({CUDA: f"{A},{B}"}, False, {CUDA: f"{A},{B}"}, {CUDA: f"{B},{A}"}),
        ({CUDA: f"{MIG},MIG-{A}/1/0"}, False, {CUDA: f"{MIG},MIG-{A}/1/0"}, {CUDA: f"MIG-{A}/1/0,{MIG}"}),
        # As CUDA reads it: what is no device ends the list. One that stands there twice is one.
        ({CUDA: "1, 0,-1,2"}, False, {CUDA: "1,0"}, {CUDA: "0,1"}),
        ({CUDA: "1,0,1"}, False, {CUDA: "1,0"}, {CUDA: "0,1"}),
        # Slurm sets all that it knows where it was not told what there is.
        (
            {CUDA: "0,1", ROCR: "0,1", ORDINAL: "0,1", ZE: "0,1"},
            False,
            {CUDA: "0,1", ROCR: "0,1", ORDINAL: "0,1", ZE: "0,1"},
            {CUDA: "1,0", ROCR: "1,0", ORDINAL: "0,1", ZE: "1,0"},
        ),
        # HIP counts what ROCR leaves, and so does CUDA's variable where that means HIP.
        ({ROCR: "4,6"}, True, {ROCR: "4,6"}, {ROCR: "6,4"}),
        ({ROCR: "4,6", HIP: "0,1"}, True, {ROCR: "4,6", HIP: "0,1"}, {ROCR: "6,4", HIP: "0,1"}),
        ({ROCR: "4,6,7", HIP: "1,2"}, True, {ROCR: "6,7", HIP: "0,1"}, {ROCR: "7,6", HIP: "0,1"}),
        (
            {ROCR: "2,3", HIP: "2,3", CUDA: "2,3"},
            True,
            {ROCR: "2,3", HIP: "0,1", CUDA: "0,1"},
            {ROCR: "3,2", HIP: "0,1", CUDA: "0,1"},
        ),
        ({HIP: "2,3"}, True, {HIP: "2,3"}, {HIP: "3,2"}),
        ({ZE: "0.0,0.1"}, False, {ZE: "0.0,0.1"}, {ZE: "0.1,0.0"}),
        # A variable with another number of devices is left alone.
        ({CUDA: "0,1", ZE: "7"}, False, {CUDA: "0,1"}, {CUDA: "1,0"}),
    ],
)  # fmt: skip
def test_each_worker_sees_its_own_device_first_in_every_variable(environ, amd, first, second):
    gpus = granted(environ, amd=amd)
    assert gpus.visible([0], peers=True) == first
    assert gpus.visible([1], peers=True) == second
    alone = gpus.visible([1], peers=False)
    assert alone == {name: "0" if name in gpus.counting else text.split(",")[0] for name, text in second.items()}


@pytest.mark.parametrize("text", ["", "-1", "NoDevFiles", "none", "void"])
def test_a_variable_that_names_no_device_says_that_there_is_none(text):
    assert granted({CUDA: text}) == NO_GPUS
    assert granted({}) is None


def test_in_a_job_only_what_variables_name_is_granted():
    assert Local().gpus({}) is None
    for job in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"):
        assert Local().gpus({job: "7"}) == NO_GPUS
    assert Local().gpus({"PBS_JOBID": "7", CUDA: "3"}).devices == ("3",)


@pytest.mark.parametrize(
    ("environ", "bound"),
    [
        ({CUDA: "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, False),
        ({CUDA: "2", "SLURM_GPUS_ON_NODE": "4"}, True),
        ({CUDA: "0", "SLURM_GPUS_ON_NODE": "1", "SLURM_GPUS_PER_TASK": "1"}, True),
        ({CUDA: "0", "SLURM_GPUS_ON_NODE": "1", "SLURM_TRES_PER_TASK": "cpu=2,gres/gpu:1"}, True),
        ({CUDA: "0,1", "SLURM_GPUS_PER_TASK": "a100:2"}, True),
        # A step that has what its job asked for each task, but for all of them together (--gpu-bind=none).
        ({CUDA: "0,1,2,3", "SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_TASK": "1"}, False),
        ({CUDA: "0,1"}, None),
    ],
)
def test_whether_a_task_has_devices_of_its_own_is_told_by_slurms_variables(environ, bound):
    environ |= {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
    assert SlurmStep().gpus(environ).bound is bound
    assert SlurmStep().binds_gpus_by_task(environ) is (bound is True or "SLURM_GPUS_PER_TASK" in environ)
    # A rank that Batchlet itself has started has its node for itself.
    assert SlurmAllocation().gpus(environ).bound is False


def node(ranks, world, gpus, cpus=64, **options):
    """The plan of a node from each of its ranks' point of view; `gpus` gives what that rank was granted."""
    whole = Figure(cpus, "SLURM_CPUS_ON_NODE")
    mode, plans = "local" if world == 1 else "slurm", {}
    for rank in ranks:
        found = gpus(rank)
        info = ProcessInfo(mode, rank, world, "n1", 1, tuple(ranks), "run", gpus_by_rank=bool(found.bound))
        resources = NodeResources(whole, whole, Figure(64 * GIB, "SLURM_MEM_PER_NODE"), found)
        plans[rank] = make_plan(info, resources, settings_of(**options))
    return plans


def shared(count, **more):
    return lambda _: Gpus({CUDA: tuple(map(str, range(count)))} if count else {}, CUDA, bound=False, **more)


def own(each):
    """Devices of each rank's own, by identity."""
    return lambda rank: Gpus({CUDA: tuple(f"GPU-{rank}-{n}" for n in range(each))}, CUDA, bound=True)


def hosted(plans):
    return {worker.name: worker for rank, plan in plans.items() for worker in plan.hosted}


@pytest.mark.parametrize(
    ("ranks", "world", "gpus", "options", "expected"),
    [
        # Two heads, two workers, four devices: two workers on each rank.
        ((0, 1, 2, 3), 4, shared(4), {}, {2: "0", "2-1": "1", 3: "2", "3-1": "3"}),
        ((0, 1, 2, 3), 4, shared(2), {}, {2: "0", 3: "1"}),
        ((0, 1, 2), 3, shared(3), {"gpus_per_worker": 2}, {2: "0,1"}),
        ((4, 5), 6, shared(4), {"workers_per_node": 2}, {4: "0,1", 5: "2,3"}),
        ((4, 5), 6, shared(1), {"workers_per_gpu": 2, "workers_per_node": 2}, {4: "0", 5: "0"}),
        ((4, 5, 6, 7), 8, shared(2), {"workers_per_gpu": 2}, {4: "0", 5: "0", 6: "1", 7: "1"}),
        ((4, 5, 6), 8, shared(2), {"gpus_per_worker": 0}, {4: "", 5: "", 6: ""}),
        # Fewer workers than ranks, where that was asked for.
        ((4, 5, 6), 8, shared(2), {"threads_per_worker": 4}, {4: "0", 5: "1"}),
        # Of their own: the heads' too are used.
        ((0, 1, 2, 3), 4, own(1), {}, {"0": "GPU-0-0", "1": "GPU-1-0", "2": "GPU-2-0", "3": "GPU-3-0"}),
        ((0, 1, 2, 3), 4, own(1), {"colocate": False}, {"2": "GPU-2-0", "3": "GPU-3-0"}),
        ((0, 1, 2, 3), 4, own(1), {"gpus_per_worker": 0}, {"2": "", "3": ""}),
        ((4, 5), 6, own(2), {}, {"4": "GPU-4-0", "4-1": "GPU-4-1", "5": "GPU-5-0", "5-1": "GPU-5-1"}),
        ((4, 5), 6, own(2), {"gpus_per_worker": 2}, {"4": "GPU-4-0,GPU-4-1", "5": "GPU-5-0,GPU-5-1"}),
        # Two ranks share a device, of two that the node has.
        (
            (4, 5, 6, 7),
            8,
            lambda rank: Gpus({CUDA: (str(rank // 2),)}, CUDA, bound=True, on_node=2),
            {"workers_per_gpu": 2},
            {4: "2", 5: "2", 6: "3", 7: "3"},
        ),
        # One process with all of it.
        ((0,), 1, shared(4), {}, {0: "0", 1: "1", 2: "2", 3: "3"}),
        ((0,), 1, shared(4), {"workers_per_node": 2}, {0: "0,1", 1: "2,3"}),
        ((0,), 1, shared(1), {"workers_per_gpu": 3}, {0: "0", 1: "0", 2: "0"}),
    ],
)
def test_one_worker_for_each_gpu_unless_asked_otherwise(ranks, world, gpus, options, expected):
    found = hosted(node(ranks, world, gpus, **options))
    assert {str(name): ",".join(worker.gpus) for name, worker in found.items()} == {
        str(name): devices for name, devices in expected.items()
    }
    for worker in found.values():
        assert worker.environ.get(CUDA, "").split(",")[: len(worker.gpus) or 1] == list(worker.gpus or [""])


@pytest.mark.parametrize(
    ("ranks", "world", "gpus", "options", "words"),
    [
        (
            (0, 1, 2, 3, 4),
            5,
            shared(2),
            {},
            "3 worker ranks on node n1 have 2 GPUs (CUDA_VISIBLE_DEVICES), 2 of them would",
        ),
        ((0, 1, 2, 3, 4), 5, shared(2), {}, "workers_per_gpu=2"),
        ((0,), 1, shared(2), {"workers_per_node": 5}, "5 workers on node n1, which has 2 GPUs (CUDA_VISIBLE_DEVICES)"),
        ((0,), 1, shared(2), {"workers_per_node": 2, "gpus_per_worker": 2}, "2 workers x 2 GPUs = 4 GPUs on node n1"),
        ((0,), 1, shared(2), {"gpus_per_worker": 3}, "gpus_per_worker=3, but node n1 has 2 GPUs"),
        ((0,), 1, shared(2), {"gpus_per_worker": 2, "workers_per_gpu": 2}, "contradict each other"),
        ((4, 5), 6, own(1), {"workers_per_node": 4}, "2 workers on one rank of node n1, which has 1 GPU"),
        ((4, 5, 6), 7, lambda rank: replace(own(1)(rank), on_node=2), {}, "so that they share them. Start"),
    ],
)
def test_too_few_gpus_are_a_sentence(ranks, world, gpus, options, words):
    with pytest.raises(PlanError, match=re.escape(words)):
        node(ranks, world, gpus, **options)


def test_fewer_cpus_than_gpus_are_a_sentence():
    with pytest.raises(PlanError, match=r"4 workers, one for each GPU .* need 4 CPUs on node n1, which has 2\."):
        node((0,), 1, shared(4), cpus=2)
    assert len(node((0,), 1, shared(4), cpus=2, gpus_per_worker=2)[0].workers) == 2
    whole, bound = Figure(64, "SLURM_CPUS_ON_NODE"), Figure(2, "CPU affinity")
    resources = NodeResources(whole, bound, Figure(64 * GIB, "SLURM_MEM_PER_NODE"), shared(4)(0))
    with pytest.raises(PlanError, match=r"4 workers on one rank of node n1 need 4 threads, but a rank has 2 CPUs"):
        make_plan(ProcessInfo("slurm", 2, 3, "n1", 1, (0, 1, 2), "run"), resources, settings_of())


OPTIONS = {
    "workers_per_node": st.integers(1, 9),
    "gpus_per_worker": st.integers(0, 3),
    "workers_per_gpu": st.integers(1, 3),
    "threads_per_worker": st.integers(1, 3),
    "gpu_peers": st.booleans(),
    "colocate": st.booleans(),
}


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(0, 8),
    bound=st.booleans(),
    ranks=st.integers(1, 9),
    first=st.integers(0, 9),
    cpus=st.integers(2, 64),
    options=st.fixed_dictionaries({}, optional=OPTIONS),
)
def test_no_gpu_has_more_workers_than_was_said_and_no_worker_has_one_that_was_not_granted(
    count, bound, ranks, first, cpus, options
):
    """What all ranks of a node plan is disjoint, within the grant, and complete where the GPUs decide the number of workers."""
    gpus = own(count) if bound and count else shared(count)
    local = tuple(range(first, first + ranks))
    try:
        plans = node(local, max(3, first + ranks), gpus, cpus, **options)
    except PlanError:
        return
    found = hosted(plans)
    used = [device for worker in found.values() for device in worker.gpus]
    most = options.get("workers_per_gpu", 1)
    assert all(used.count(device) <= most for device in used)
    for rank, plan in plans.items():
        for worker in plan.hosted:
            devices = gpus(rank).devices
            assert set(worker.gpus) <= set(devices)
            visible = worker.environ.get(CUDA, "")
            if worker.gpus:
                wanted = list(worker.gpus) if not options.get("gpu_peers", True) else None
                assert visible.split(",")[: len(worker.gpus)] == list(worker.gpus)
                assert wanted is None or visible.split(",") == wanted
                assert sorted(visible.split(",")) == sorted(devices if wanted is None else wanted)
            else:
                assert visible == ""
    if options.get("gpus_per_worker") == 0 or not count:
        assert not used
    elif found and not {"workers_per_node", "threads_per_worker", "gpus_per_worker"} & options.keys():
        of_hosts = {device for rank, plan in plans.items() if plan.hosted for device in gpus(rank).devices}
        assert set(used) == of_hosts


# The jobs of data/gpus_*.json
CAPTURED = {
    "gpus_gres": {"2": "0", "2-1": "1", "3": "2", "3-1": "3"},
    "gpus_uneven": {"2": "0", "2-1": "1", "3": "2", "3-1": "3", "4": "0", "4-1": "1"},
    "gpus_per_task": {"0": "0", "1": "1", "2": "2", "3": "3"},
    "gpus_single": {"0": "0", "1": "1", "2": "2", "3": "3"},
    "gpus_amd": {"2": "0", "3": "1"},
    # Each rank calls its own 0.
    "gpus_per_task_constrained": {"0": "0", "1": "0", "2": "0", "3": "0"},
}


@pytest.mark.parametrize("name", CAPTURED)
def test_what_tasks_of_a_real_slurm_saw_makes_these_workers(name):
    plans = []
    for task in SHAPES[name].tasks:
        info, grant = SlurmStep().identity(task.env), SlurmStep().granted(task.env)
        plans.append(make_plan(info, node_resources(grant, task.host), settings_of()))
    assert {str(w.name): ",".join(w.gpus) for plan in plans for w in plan.hosted} == CAPTURED[name]


def test_every_captured_job_with_gpus_is_looked_at():
    assert CAPTURED.keys() == {name for name in SHAPES if name.startswith("gpus")}


# Jobs that are submitted


def job(names, gpus, **options):
    """The workers of a node of a job that was granted these GPUs."""
    whole = Figure(8, "SLURM_CPUS_ON_NODE")
    resources = NodeResources(whole, whole, Figure(8 * GIB, "SLURM_MEM_PER_NODE"), gpus)
    return fit(names, [1] * len(names), GIB, resources, settings_of(submit="slurm", **options))[0]


def test_a_submitted_job_has_a_worker_for_each_gpu_and_asks_for_them():
    cores, memory = Figure(8, "cores="), Figure(8 * GIB, "memory=")
    size = size_of_job(settings_of(submit="slurm", gpus=4), cores, memory)
    assert (size.workers_per_node, size.threads, size.gpus) == (4, (2, 2, 2, 2), 4)
    size = size_of_job(settings_of(submit="slurm", gpus_per_worker=2, workers_per_node=3), cores, memory)
    assert (size.workers_per_node, size.gpus) == (3, 6)
    assert size_of_job(settings_of(submit="slurm"), cores, memory).gpus == 0
    assert batch_system("slurm").gpus(4) == ("--gres=gpu:4",)
    assert batch_system("pbs").gpus(4) is None


def test_the_workers_of_a_job_have_the_gpus_that_it_was_granted():
    workers = job(["0-0", "0-1"], shared(2)(0))
    assert [worker.environ for worker in workers] == [{CUDA: "0,1"}, {CUDA: "1,0"}]
    assert [worker.gpus for worker in job(["0-0", "0-1"], shared(4)(0))] == [("0", "1"), ("2", "3")]
    assert [worker.gpus for worker in job(["0-0", "0-1"], None)] == [(), ()]
    with pytest.raises(PlanError, match=r"3 workers on node \S+, which has 2 GPUs"):
        job(["0-0", "0-1", "0-2"], shared(2)(0))
    with pytest.raises(PlanError, match="no variable names a GPU that the job was granted"):
        job(["0-0"], NO_GPUS, gpus_per_worker=1)


# dask-cuda


def class_of(names, tmp_path, monkeypatch, *, installed=True, problem=None, amd=False, variable=CUDA, **options):
    """The classes of the workers of a process with these GPUs, and what the plan and the user are told of it."""
    if installed:
        (tmp_path / "dask_cuda").mkdir()
        (tmp_path / "dask_cuda" / "__init__.py").write_text("raise AssertionError")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cuda_workers, "driver_problem", lambda: problem)
    monkeypatch.setattr(cuda_workers, "only_amd", lambda: amd)
    gpus = Gpus({variable: names} if names else {}, variable, bound=False)
    plan = choose_in_plan(node((0,), 1, lambda _: gpus, **options)[0], settings_of(**options))
    figure = plan.figures.get("worker_class")
    return {worker.worker_class for worker in plan.workers}, figure and f"{figure.value}: {figure.source}", plan.notes


TAKEN = ({"dask_cuda.CUDAWorker"}, "dask_cuda.CUDAWorker: dask-cuda is installed", ())
PLAIN = ({""}, None, ())
WITHOUT = {"ZE": {"variable": ZE}, "AMD": {"amd": True}, "HIP": {"variable": HIP}}


@pytest.mark.parametrize("names", [("0", "1"), (A,), (MIG, f"MIG-{A}/1/0")])
def test_where_dask_cuda_is_installed_it_has_the_workers_of_nvidias_gpus(names, tmp_path, monkeypatch):
    assert class_of(names, tmp_path, monkeypatch) == TAKEN
    assert "dask_cuda" not in sys.modules


@pytest.mark.parametrize("how", [{"installed": False}, *WITHOUT.values(), {"worker_class": "distributed.Nanny"}])
def test_where_it_has_no_place_there_is_no_word_of_it(how, tmp_path, monkeypatch):
    if not how.get("installed", True) and importlib.util.find_spec("dask_cuda") is not None:
        pytest.skip("dask-cuda is installed")
    assert class_of(("0", "1"), tmp_path, monkeypatch, **how) == PLAIN


def test_without_gpus_it_is_not_even_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: pytest.fail("looked for"))
    assert class_of((), tmp_path, monkeypatch, problem="asked for") == PLAIN


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus_per_worker": 2}, "dask-cuda is installed, but has one GPU for each worker, of which these have 2"),
        ({"workers_per_gpu": 2}, "dask-cuda is installed, but has one worker for each GPU, and workers_per_gpu=2"),
    ],
)
def test_workers_of_another_shape_are_plain_and_the_plan_says_why(options, words, tmp_path, monkeypatch):
    assert class_of(("0", "1"), tmp_path, monkeypatch, **options) == ({""}, f"distributed.Nanny: {words}", ())
    with pytest.raises(PlanError, match="which only dask-cuda's workers take, but dask-cuda has one"):
        size_of_job(
            settings_of(submit="slurm", gpus=4, worker_options={"rmm_async": True}, **options),
            Figure(8, "cores="), Figure(8 * GIB, "memory="),
        )  # fmt: skip


def test_a_driver_that_does_not_work_is_told(tmp_path, monkeypatch):
    classes, figure, notes = class_of(("0",), tmp_path, monkeypatch, problem="no driver")
    assert (classes, figure) == ({""}, "distributed.Nanny: dask-cuda is installed, but cannot be used: no driver")
    assert notes == ("workers are Dask's own, dask-cuda is installed, but cannot be used: no driver",)


# The driver


def driver(tmp_path):
    """A host with two GPUs, as NVIDIA's driver shows it in /proc and the kernel in /sys."""
    for bus, uuid, minor, cpus in (("0000:3b:00.0", A, 1, "0-3"), ("0000:af:00.0", B, 0, "4-6,8")):
        place = tmp_path / "proc/driver/nvidia/gpus" / bus
        place.mkdir(parents=True)
        place.joinpath("information").write_text(
            f"Model: \t\t NVIDIA H200\nIRQ:   \t\t 122\nGPU UUID: \t {uuid}\nVideo BIOS: \t 96.00\nBus Location: \t {bus}\n"
            f"Device Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
        near = tmp_path / "sys/bus/pci/devices" / bus
        near.mkdir(parents=True)
        near.joinpath("local_cpulist").write_text(cpus + "\n")
        tmp_path.joinpath("dev").mkdir(exist_ok=True)
        tmp_path.joinpath(f"dev/nvidia{minor}").touch()
    return tmp_path


def test_without_a_variable_the_driver_says_which_gpus_there_are(tmp_path):
    root = driver(tmp_path)
    assert [gpu.minor for gpu in host_gpus(root / "proc")] == [1, 0]
    found = read_gpus(root / "proc")
    assert (found.named, found.bound) == ({CUDA: (A, B)}, False)
    assert near_cpus(A, root) == {0, 1, 2, 3}
    assert near_cpus(B[:12], root) == {4, 5, 6, 8}
    assert near_cpus(f"MIG-{B}/1/0", root) == {4, 5, 6, 8}
    assert [near_cpus(index, root) for index in "01"] == [{4, 5, 6, 8}, {0, 1, 2, 3}]
    for unknown in (MIG, "7", "GPU-"):
        assert near_cpus(unknown, root) == frozenset()
    # Whom a control group forbids the first one, 0 is the second.
    (root / "dev/nvidia0").unlink()
    assert near_cpus("0", root) == {0, 1, 2, 3}


def test_a_host_without_the_driver_pays_nothing(tmp_path):
    assert read_gpus(tmp_path) is None
    before = set(sys.modules)
    assert read_host(tmp_path).gpus is None
    assert "pynvml" not in set(sys.modules) - before

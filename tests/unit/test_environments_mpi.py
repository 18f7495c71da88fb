"""The variables of MPI launchers, as real mpirun sets them and as no mpirun should."""

from __future__ import annotations

import os
import re
import socket

import pytest

from batchlet.environments import first_process, mpi
from batchlet.environments.base import Figure
from batchlet.environments.mpi import Mpi
from batchlet.errors import LauncherError

MPI = Mpi()
MIB = 1 << 20

# Captured: `mpirun --oversubscribe -n 4` of Open MPI 5.0.11 (PyPI) on one host with 2 CPUs. Its local ranks are not in order.
OPEN_MPI = [
    {
        "PMIX_NAMESPACE": "prterun-vm-9120@1",
        "PMIX_RANK": str(rank),
        "PMIX_SERVER_URI41": "prterun-vm-9120@0.0;tcp4://127.0.0.1:37613",
        "PMIX_HOSTNAME": "vm",
        "OMPI_VERSION": "5.0.11",
        "OMPI_UNIVERSE_SIZE": "2",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_FILE_LOCATION": f"/tmp/ompi.9120/1/{rank}",
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local),
        "OMPI_COMM_WORLD_NODE_RANK": str(local),
    }
    for rank, local in enumerate([0, 2, 1, 3])
]
# Captured: `mpiexec -n 3` of MPICH 4.0.2 (Debian 12).
MPICH = [
    {
        "HYDI_CONTROL_FD": "7",
        "GFORTRAN_UNBUFFERED_PRECONNECTED": "y",
        "MPIR_CVAR_CH3_INTERFACE_HOSTNAME": "vm",
        "MPI_LOCALNRANKS": "3",
        "MPI_LOCALRANKID": str(rank),
        "PMI_RANK": str(rank),
        "PMI_FD": "8",
        "PMI_SIZE": "3",
    }
    for rank in range(3)
]
# From documentation: one rank each, number 5 of 8, on the second of two nodes with 4 ranks each.
DOCUMENTED = {
    "Open MPI": {
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_MCA_ess_base_jobid": "2763456513",
    },
    "MVAPICH2": {
        "MV2_COMM_WORLD_RANK": "5",
        "MV2_COMM_WORLD_SIZE": "8",
        "MV2_COMM_WORLD_LOCAL_RANK": "1",
        "MV2_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "jsrun": {
        "JSM_NAMESPACE_RANK": "5",
        "JSM_NAMESPACE_SIZE": "8",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
        "JSM_NAMESPACE_LOCAL_SIZE": "4",
        "PMIX_NAMESPACE": "3",
        "PMIX_RANK": "5",
    },
    "PALS": {
        "PALS_RANKID": "5",
        "PALS_LOCAL_RANKID": "1",
        "PALS_APID": "6f2c1a52-9f0e-4a86-8a4e-0f2a4c2f4f11",
        "PMI_RANK": "5",
        "PMI_SIZE": "8",
        "PMI_LOCAL_SIZE": "4",
    },
    "Flux": {
        "FLUX_TASK_RANK": "5",
        "FLUX_JOB_SIZE": "8",
        "FLUX_TASK_LOCAL_ID": "1",
        "FLUX_JOB_NNODES": "2",
        "FLUX_JOB_ID": "ƒ3ETxsR9H",
        "PMI_RANK": "5",
        "PMI_SIZE": "8",
    },
    "Intel MPI": {
        "PMI_RANK": "5",
        "PMI_SIZE": "8",
        "MPI_LOCALRANKID": "1",
        "MPI_LOCALNRANKS": "4",
        "I_MPI_MPIRUN": "mpirun",
    },
}
GOOD = DOCUMENTED["Open MPI"]


@pytest.fixture(autouse=True)
def _same_parents(monkeypatch):
    """Whatever started the tests is not the launcher of this process."""
    monkeypatch.setattr(mpi, "_ancestors", lambda: iter([(os.getppid(), ["/usr/bin/mpirun"])]))


@pytest.fixture
def machine(monkeypatch):
    """Set the CPUs that this rank and its launcher may run on."""

    def see(own, launcher):
        monkeypatch.setattr(mpi, "_affinity", lambda pid=0: launcher if pid else own)

    return see


def changed(**variables: str | None) -> dict[str, str]:
    return {name: value for name, value in (GOOD | variables).items() if value is not None}


def refusal(environ, read=MPI.process) -> str:
    with pytest.raises(LauncherError) as caught:
        read(environ)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("ranks", [OPEN_MPI, MPICH], ids=["openmpi", "mpich"])
def test_every_rank_of_a_real_mpirun_knows_its_rank_and_they_agree_on_the_rest(ranks):
    infos = [MPI.process(environ) for environ in ranks]
    assert [info.rank for info in infos] == list(range(len(ranks)))
    assert {info.world_size for info in infos} == {len(ranks)}
    assert {info.local_ranks for info in infos} == {tuple(range(len(ranks)))}
    assert {info.nodes for info in infos} == {1}
    assert {info.node for info in infos} == {socket.gethostname().split(".")[0]}
    assert len({info.run_id for info in infos}) == 1


def test_a_real_mpirun_is_recognised_and_says_by_what():
    assert MPI.detect(OPEN_MPI[2]) == "OMPI_COMM_WORLD_RANK=2"
    assert MPI.detect(MPICH[1]) == "PMI_RANK=1"
    assert (MPI.process(OPEN_MPI[2]).job, MPI.process(MPICH[1]).job) == ("Open MPI", "MPICH")


def test_no_launcher_is_no_mpi():
    assert MPI.detect({"PATH": "/bin", "SLURM_PROCID": "0"}) is None
    assert "mpirun" in refusal({"PATH": "/bin"})


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_launcher_is_read_from_its_documented_variables(name):
    environ = DOCUMENTED[name]
    info = MPI.process(environ)
    assert (info.mode, info.rank, info.world_size, info.local_ranks, info.nodes) == ("mpi", 5, 8, (4, 5, 6, 7), 2)
    assert info.job == name
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", info.run_id)
    assert MPI.detect(environ) == f"{next(iter(environ))}=5"


@pytest.mark.parametrize(
    ("rank", "size", "local_rank", "local_size", "ranks"),
    [
        (0, 7, 0, 4, (0, 1, 2, 3)),
        (5, 7, 1, 3, (4, 5, 6)),
        (2, 8, 1, 4, (0, 1, 2, 3)),
        (6, 7, 3, 4, (3, 4, 5, 6)),
        (0, 3, 1, 2, (0, 1)),
        (1, 1000, 0, 1, (1,)),
    ],
)
def test_the_ranks_of_a_node_are_taken_to_be_a_block_around_this_one(rank, size, local_rank, local_size, ranks):
    environ = changed(
        OMPI_COMM_WORLD_RANK=str(rank),
        OMPI_COMM_WORLD_SIZE=str(size),
        OMPI_COMM_WORLD_LOCAL_RANK=str(local_rank),
        OMPI_COMM_WORLD_LOCAL_SIZE=str(local_size),
    )
    info = MPI.process(environ)
    assert info.local_ranks == ranks
    assert info.nodes == -(-size // local_size)


def test_without_local_variables_all_ranks_share_the_node_so_that_nothing_is_given_out_twice():
    info = MPI.process({"PMI_RANK": "3", "PMI_SIZE": "8"})
    assert (info.local_ranks, info.nodes) == (tuple(range(8)), 1)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK='x'"),
        ({"OMPI_COMM_WORLD_RANK": "-1"}, "OMPI_COMM_WORLD_RANK='-1'"),
        ({"OMPI_COMM_WORLD_RANK": "8"}, "OMPI_COMM_WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "0"}, "OMPI_COMM_WORLD_SIZE='0'"),
        ({"OMPI_COMM_WORLD_SIZE": None}, "number of ranks is unknown"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "9"}, "OMPI_COMM_WORLD_LOCAL_SIZE=9"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": ""}, "OMPI_COMM_WORLD_LOCAL_SIZE=''"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "4"}, "OMPI_COMM_WORLD_LOCAL_RANK=4"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "one"}, "OMPI_COMM_WORLD_LOCAL_RANK='one'"),
    ],
)
def test_malformed_variables_are_refused_by_name(variables, words):
    assert words in refusal(changed(**variables))


def test_a_rank_without_a_size_is_refused_with_the_way_out():
    message = refusal({"PMIX_RANK": "0", "PMIX_NAMESPACE": "prte-vm-1@1"})
    assert "PMIX_RANK=0" in message
    assert 'mode="local"' in message


# srun --mpi=pmi2 and --mpi=pmix; a step of 4 tasks.
TASK = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize("variables", [{"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_FD": "9"}, {"PMIX_RANK": "2"}])
def test_what_srun_itself_sets_for_mpi_is_left_to_slurm(variables):
    assert MPI.detect(TASK | variables) is None


@pytest.mark.parametrize(
    "ranks", [[changed(OMPI_COMM_WORLD_RANK="2")], [MPICH[2]], [{"PMI_RANK": "2", "PMI_SIZE": "8"}]], ids=str
)
def test_mpirun_inside_a_slurm_job_wins(ranks):
    # The daemons that mpirun started on the nodes are the tasks of a step.
    for environ in ranks:
        assert MPI.detect(TASK | environ) is not None
        assert MPI.process(TASK | environ).rank == 2
        assert MPI.process(TASK | environ).job.endswith(" in Slurm job 42")


def test_mpich_with_one_rank_per_node_looks_like_srun_but_is_not():
    daemon = TASK | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}
    assert MPI.detect(daemon | MPICH[1]) == "PMI_RANK=1"


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, None),
        (TASK, None),
        (TASK | {"PMI_RANK": "2", "PMI_SIZE": "4"}, None),
        (OPEN_MPI[0], True),
        (OPEN_MPI[1], False),
        (changed(OMPI_COMM_WORLD_SIZE="many"), False),
        (changed(OMPI_COMM_WORLD_RANK="none"), True),
    ],
)
def test_who_speaks_is_known_even_if_the_variables_are_refused(environ, first):
    assert (MPI.detect(environ) is None) == (first is None)
    assert first_process(environ) is (first is not False)
    if first is not None:
        assert MPI.is_first(environ) is first


def test_different_runs_have_different_names():
    names = {
        MPI.process(changed(PMIX_NAMESPACE=namespace, **slurm)).run_id
        for namespace in ("prterun-n1-9120@1", "prterun-n1-912@1", "prterun-n2-9120@1", None)
        for slurm in ({}, {"SLURM_JOB_ID": "42"}, {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "1"})
    }
    assert len(names) == 12
    assert all(re.fullmatch(r"mpi-[A-Za-z0-9_.-]+", name) for name in names)


def test_a_run_of_mpich_is_named_after_where_its_mpiexec_listens(monkeypatch):
    # Seen: the same on every node; below a shell too.
    proxy = ["/usr/bin/hydra_pmi_proxy", "--control-port", "vm:44197", "--rmk", "user", "--proxy-id", "0", ""]
    monkeypatch.setattr(mpi, "_ancestors", lambda: iter([(3, ["bash", "-c", "python app.py", ""]), (2, proxy)]))
    assert {MPI.process(environ).run_id for environ in MPICH} == {"mpi-vm-44197"}


def test_without_any_identifier_a_run_is_named_after_batch_job_and_script(monkeypatch):
    def name(*argv, **variables):
        monkeypatch.setattr("sys.argv", list(argv))
        return MPI.process(MPICH[0] | variables).run_id

    names = [name("a.py"), name("a.py", "-x"), name("a.py", PBS_JOBID="7.head"), name("a.py", LSB_JOBID="8")]
    assert len(set(names)) == 4
    assert names[2].startswith("mpi-7.head-")
    assert name("a.py") == names[0]


def test_the_processes_above_this_one_are_found(monkeypatch, tmp_path):
    monkeypatch.undo()
    ancestors = list(mpi._ancestors())
    if not ancestors:
        pytest.skip("no /proc here")
    assert ancestors[0][0] == os.getppid()
    assert all(arguments for _, arguments in ancestors)
    assert list(mpi._ancestors(tmp_path)) == []


class TestGrant:
    def test_ranks_that_are_not_bound_get_what_the_host_has(self, machine):
        machine(8, 8)
        assert MPI.grant(GOOD).cpus is None
        assert MPI.grant(GOOD).memory is None

    def test_ranks_bound_to_a_core_each_have_their_cores_together(self, machine):
        # Open MPI's default for 2 ranks on 2 CPUs (seen): each rank sees one.
        machine(1, 2)
        environ = changed(OMPI_COMM_WORLD_LOCAL_SIZE="2")
        assert MPI.grant(environ).cpus == Figure(2, "CPU affinity of the launcher")

    def test_ranks_bound_to_a_core_each_have_no_more_than_their_cores(self, machine):
        machine(1, 64)
        assert MPI.grant(GOOD).cpus == Figure(4, "CPU affinity (1 for each of 4 ranks)")

    def test_ranks_bound_to_a_package_share_it(self, machine):
        machine(32, 64)
        assert MPI.grant(GOOD).cpus == Figure(64, "CPU affinity of the launcher")

    def test_a_launcher_that_is_bound_itself_has_no_more_to_give(self, machine):
        machine(4, 4)
        assert MPI.grant(GOOD).cpus is None

    @pytest.mark.parametrize("own", [1, 2])
    def test_more_ranks_than_cpus_get_one_each(self, machine, own):
        machine(own, 2)
        assert MPI.grant(GOOD).cpus == Figure(4, "OMPI_COMM_WORLD_LOCAL_SIZE (oversubscribed)")
        assert MPI.grant(MPICH[0]).cpus == Figure(3, "MPI_LOCALNRANKS (oversubscribed)")

    def test_inside_slurm_the_job_says_what_this_node_may_use(self, machine):
        machine(1, 64)
        here = socket.gethostname().split(".")[0]
        slurm = {"SLURM_JOB_ID": "42", "SLURMD_NODENAME": here, "SLURM_CPUS_ON_NODE": "6", "SLURM_MEM_PER_CPU": "100"}
        grant = MPI.grant(GOOD | slurm)
        assert grant.cpus == Figure(6, "SLURM_CPUS_ON_NODE")
        assert grant.memory == Figure(600 * MIB, "SLURM_MEM_PER_CPU x 6 CPUs")

    def test_variables_of_another_node_are_not_believed(self, machine):
        # MPICH's mpiexec takes the first node's variables everywhere.
        machine(2, 8)
        slurm = {"SLURM_JOB_ID": "42", "SLURMD_NODENAME": "other", "SLURM_CPUS_ON_NODE": "6"}
        assert MPI.grant(MPICH[0] | slurm).cpus == Figure(6, "CPU affinity (2 for each of 3 ranks)")
        uniform = slurm | {"SLURM_JOB_CPUS_PER_NODE": "5(x2)"}
        assert MPI.grant(MPICH[0] | uniform).cpus == Figure(5, "SLURM_JOB_CPUS_PER_NODE")
        uneven = slurm | {"SLURM_JOB_CPUS_PER_NODE": "6,2"}
        assert MPI.grant(MPICH[0] | uneven).cpus == Figure(6, "CPU affinity (2 for each of 3 ranks)")

    def test_a_node_finds_itself_in_the_list_of_the_jobs_nodes(self, machine, monkeypatch):
        # Captured: the second node of `sbatch -N2 -n6`, whose CPUs are 5 and 1, under MPICH's mpiexec.
        machine(2, 2)
        monkeypatch.setattr(mpi, "_node", lambda: "c9n2")
        environ = {
            "SLURM_JOB_ID": "1",
            "SLURMD_NODENAME": "c9n1",
            "SLURM_JOB_NODELIST": "c9n[1-2]",
            "SLURM_JOB_CPUS_PER_NODE": "5,1",
            "SLURM_CPUS_ON_NODE": "1",
            "SLURM_MEM_PER_NODE": "2048",
            "SLURM_STEP_ID": "1",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_PROCID": "1",
            "PMI_RANK": "5",
            "PMI_SIZE": "6",
            "MPI_LOCALRANKID": "0",
            "MPI_LOCALNRANKS": "1",
        }
        assert MPI.grant(environ).cpus == Figure(1, "SLURM_JOB_CPUS_PER_NODE")
        assert MPI.grant(environ).memory == Figure(2048 * MIB, "SLURM_MEM_PER_NODE")
        assert MPI.process(environ).local_ranks == (5,)

    @pytest.mark.parametrize(
        ("text", "nodes"),
        [
            ("n1", ["n1"]),
            ("c9n[1-2]", ["c9n1", "c9n2"]),
            ("gpu7,n[08-10,12]-ib,x", ["gpu7", "n08-ib", "n09-ib", "n10-ib", "n12-ib", "x"]),
            ("", []),
            ("r[1-2]n[1-2]", []),
            ("n[1-", []),
            ("n[-2]", []),
        ],
    )
    def test_slurms_list_of_nodes(self, text, nodes):
        assert mpi._expand_nodes(text) == nodes

    def test_oversubscribed_inside_slurm(self, machine):
        machine(2, 2)
        slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_CPUS_PER_NODE": "2", "SLURM_MEM_PER_NODE": "512"}
        grant = MPI.grant(GOOD | slurm)
        assert grant.cpus == Figure(4, "OMPI_COMM_WORLD_LOCAL_SIZE (oversubscribed)")
        assert grant.memory == Figure(512 * MIB, "SLURM_MEM_PER_NODE")

    def test_a_malformed_number_of_ranks_is_refused(self):
        assert "OMPI_COMM_WORLD_LOCAL_SIZE" in refusal(changed(OMPI_COMM_WORLD_LOCAL_SIZE="many"), MPI.grant)


def test_nothing_is_asked_outside_slurm():
    assert MPI.ask(GOOD) == {}

"""What a job of gridengine, PBS, LSF, OAR or HTCondor was granted on this node, as far as its variables tell.

Mostly nothing there binds a process to what its job was granted, so that a script would take the whole host. The variables are
those of submit(1), qsub(1B), the LSF configuration reference, oarsub(1) and HTCondor's manual ("Services for running jobs").
Whatever cannot be read says nothing: the host, its control groups and the CPU affinity decide then.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from ..launch_variables import SLURM_JOB_ID, whole_number
from .base import Figure, Grant

__all__ = ["in_job", "job_grant"]

_MIB = 1 << 20


def job_grant(environ: Mapping[str, str]) -> Grant:
    """Read what the job around this process was granted on this node.

    Parameters
    ----------
    environ : mapping of str to str
        The process's environment.

    Returns
    -------
    Grant
        Nothing where there is no such job.
    """
    for mark, read in _SYSTEMS.items():
        if environ.get(mark):
            return read(environ)
    return Grant()


def in_job(environ: Mapping[str, str]) -> bool:
    """Whether there is a job of any batch system around this process."""
    return any(environ.get(mark) for mark in (SLURM_JOB_ID, *_SYSTEMS))


def _gridengine(environ: Mapping[str, str]) -> Grant:
    """Slots; ``PE_HOSTFILE`` has a line for each host, or for each of its queues: host, slots, queue, processors.

    Memory where the job has ``h_vmem``: each process is limited to that of all slots here, and so are all of them together.
    """
    slots, hosts = whole_number(environ.get("NSLOTS")), whole_number(environ.get("NHOSTS"))
    lines = [line.split() for line in _lines(environ.get("PE_HOSTFILE", ""))]
    here = sum(whole_number(line[1]) or 0 for line in lines if len(line) > 1 and _is_here(line[0]))
    cpus = _cpus(here, "PE_HOSTFILE") if here else _cpus(slots, "NSLOTS") if hosts in (None, 1) else Grant()
    return Grant(cpus.cpus, _address_space())


def _address_space() -> Figure[int] | None:
    try:
        import resource
    except ImportError:  # not there on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY or soft < 0 else Figure(soft, "h_vmem (ulimit -v)")


def _pbs(environ: Mapping[str, str]) -> Grant:
    """Threads of a process (``NCPUS``, which Torque has not), and processes: the node's lines in ``PBS_NODEFILE``.

    Where both are more than one, either each process has so many threads, or they share them; a limit has to be right for both.
    """
    threads = whole_number(environ.get("NCPUS")) or 0
    processes = sum(_is_here(line) for line in _lines(environ.get("PBS_NODEFILE", "")))
    if threads > processes:
        return _cpus(threads, "NCPUS")
    return _cpus(processes, "PBS_NODEFILE")


def _lsf(environ: Mapping[str, str]) -> Grant:
    """Slots by host: ``hostA 4 hostB 2``."""
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    pairs = list(zip(words[::2], words[1::2], strict=False))
    here = sum(whole_number(count) or 0 for host, count in pairs if _is_here(host))
    if here:
        return _cpus(here, "LSB_MCPU_HOSTS")
    return _cpus(whole_number(environ.get("LSB_DJOB_NUMPROC")), "LSB_DJOB_NUMPROC") if len(pairs) <= 1 else Grant()


def _oar(environ: Mapping[str, str]) -> Grant:
    """Cores: a line for each of them, which names its node."""
    name = "OAR_NODEFILE" if environ.get("OAR_NODEFILE") else "OAR_NODE_FILE"
    return _cpus(sum(_is_here(line) for line in _lines(environ.get(name, ""))), name)


def _htcondor(environ: Mapping[str, str]) -> Grant:
    """The slot as it was made for the job: CPUs, and memory in MiB."""
    name = "_CONDOR_MACHINE_AD"
    found = dict(re.findall(r"^(Cpus|Memory) = (\d+)$", "\n".join(_lines(environ.get(name, ""))), re.MULTILINE))
    memory = whole_number(found.get("Memory"))
    return Grant(_cpus(whole_number(found.get("Cpus")), name).cpus, Figure(memory * _MIB, name) if memory else None)


# By the variable that is in each job of the system and nowhere else.
_SYSTEMS: dict[str, Callable[[Mapping[str, str]], Grant]] = {
    "SGE_TASK_ID": _gridengine,
    "PBS_JOBID": _pbs,
    "LSB_JOBID": _lsf,
    "OAR_JOB_ID": _oar,
    "_CONDOR_MACHINE_AD": _htcondor,
}


def _cpus(count: int | None, source: str) -> Grant:
    return Grant(cpus=Figure(count, source)) if count else Grant()


def _is_here(host: str) -> bool:
    """Whether this is the name of this node, with or without its domain."""
    return host.strip().split(".")[0] == socket.gethostname().split(".")[0]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines() if path else []
    except (OSError, UnicodeDecodeError):
        return []

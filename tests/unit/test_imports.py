"""Importing Batchlet is light and without side effects, and its modules import each other one way only."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import batchlet

from .shapes import STEPS

PACKAGE = Path(batchlet.__file__).parent
HEAVY = {
    "dask",
    "distributed",
    "tornado",
    "asyncio",
    "numpy",
    "pandas",
    "psutil",
    "mpi4py",
    "multiprocessing",
    "cryptography",
}

# The way of the data, room by room: a module imports only from lines above its own, in its room or another one.
ROOMS = (
    (
        "",
        (
            ("commands", "entry_points", "gpus", "launch_variables", "values"),
            ("errors", "versions"),
            ("open_files", "protocols"),
            ("timeline",),
            ("settings", "program"),
            ("report",),
        ),
    ),
    ("launchers", (("launchers",), ("launchers.base",), ("launchers.srun",))),
    (
        "environments",
        (
            ("environments.base", "environments.slurm_gpus"),
            ("environments.slurm", "environments.batch_jobs", "environments.allocation_end"),
            ("environments.slurm_job",),
            ("environments.slurm_successor",),
            ("environments.mpi", "environments.local"),
            ("environments",),
        ),
    ),
    (
        "",
        (
            ("nvidia",),
            ("topology",),
            ("resources", "planned", "gpu_shares"),
            ("plan", "walltime"),
            ("binding", "cuda_workers"),
            ("network",),
            ("security",),
        ),
    ),
    (
        "rendezvous",
        (
            ("rendezvous.base",),
            ("rendezvous.file", "rendezvous.mpi", "rendezvous.pipe", "rendezvous.register"),
            ("rendezvous",),
        ),
    ),
    (
        "run_report",
        (
            ("run_report",),
            ("run_report.cleaning", "run_report.reading", "run_report.wording"),
            ("run_report.summary", "run_report.asking"),
            ("run_report.advice", "run_report.plots", "run_report.tables"),
            ("run_report.page", "run_report.text"),
            (
                "run_report.log_lines",
                "run_report.prometheus",
                "run_report.series",
                "run_report.task_groups",
                "run_report.writer",
            ),
            ("run_report.tally",),
            ("run_report.told",),
            ("run_report.collector",),
            ("run_report.finishing",),
            ("run_report.book",),
        ),
    ),
    (
        "control",
        (
            ("control",),
            ("control.messages", "control.pulse", "control.signals"),
            ("control.wire",),
            ("control.greeting",),
            ("control.presence", "control.handshake", "control.events", "control.wording"),
            ("control.roster", "control.connection", "control.door"),
            ("control.outbox",),
            ("control.guests", "control.visitors"),
            ("control.ending",),
            ("control.losses",),
            ("control.state",),
            ("control.coordinator",),
        ),
    ),
    ("", (("command_line", "dask_import"),)),
    (
        "jobs",
        (
            ("jobs",),
            ("jobs.systems.base",),
            (
                "jobs.systems.htcondor",
                "jobs.systems.local",
                "jobs.systems.lsf",
                "jobs.systems.oar",
                "jobs.systems.pbs",
                "jobs.systems.sge",
                "jobs.systems.slurm",
            ),
            ("jobs.systems.moab",),
            ("jobs.systems",),
            ("jobs.commands", "jobs.sizing"),
        ),
    ),
    (
        "node",
        (
            ("node",),
            ("node.inputs", "node.wait", "node.agent_socket", "node.process_use"),
            ("node.sampling",),
            ("node.start", "node.handover", "node.look_out"),
            ("node.attach",),
            ("node.again",),
            ("node.rank",),
            ("node.join",),
            ("node.resolve", "node.gpu_views"),
        ),
    ),
    (
        "dask_backend",
        (
            ("dask_backend",),
            ("dask_backend.compat",),
            (
                "dask_backend.compat.dask_internals",
                "dask_backend.compat.http_servers",
                "dask_backend.compat.interpreter_end",
                "dask_backend.compat.log_messages",
                "dask_backend.compat.logging_internals",
                "dask_backend.compat.multiprocessing_internals",
                "dask_backend.compat.scheduler_state",
                "dask_backend.compat.tls_backend",
                "dask_backend.compat.tls_connections",
                "dask_backend.compat.visiting",
            ),
            ("dask_backend.compat.figures",),
            ("dask_backend.node_links",),
            ("dask_backend.logs", "dask_backend.processes", "dask_backend.stopped_host"),
            ("dask_backend.log_tap",),
            ("dask_backend.worker_logs",),
            ("dask_backend.scratch", "dask_backend.tls", "dask_backend.dashboard", "dask_backend.rank_preload"),
            ("dask_backend.worker_process", "dask_backend.gpu_workers"),
            ("dask_backend.fork_server", "dask_backend.tuning"),
            ("dask_backend.scheduler_figures",),
            ("dask_backend.scheduler",),
            ("dask_backend.workers",),
            ("dask_backend.worker_factory",),
            ("dask_backend.local_cluster", "dask_backend.scheduler_process"),
        ),
    ),
    (
        "node",
        (
            ("node.worker_rank",),
            ("node.scheduler_request", "node.sharing"),
            ("node.scheduler_block",),
            ("node.coordinator_rank",),
            ("node.rank_roles", "node.local_rank"),
            ("node.local_ranks", "node.hosting"),
            ("node.agent", "node.job_agent", "node.guest"),
            ("node.bootstrap",),
        ),
    ),
    ("launchers", (("launchers.step",),)),
    (
        "client",
        (
            ("client",),
            ("client.telling",),
            (
                "client.backend",
                "client.by_hand",
                "client.early_client",
                "client.porch",
                "client.requeue",
                "client.run_clock",
            ),
            (
                "client.announce",
                "client.dask_clients",
                "client.local",
                "client.membership",
                "client.performance",
                "client.refusal",
            ),
            ("client.account", "client.ranks", "client.status", "client.stopping"),
            ("client.session", "client.default_client"),
            ("client.cluster_view",),
        ),
    ),
    (
        "jobs",
        (
            ("jobs.custodian", "jobs.hub", "jobs.job_logs", "jobs.job_record", "jobs.lifetime"),
            ("jobs.account", "jobs.record"),
            ("jobs.job", "jobs.table", "jobs.watch"),
            ("jobs.adaptive", "jobs.desk", "jobs.options"),
            ("jobs.leaving", "jobs.submitter"),
            ("jobs.keeper",),
            ("jobs.kept_cluster",),
            ("jobs.cluster",),
        ),
    ),
    (
        "visits",
        (
            ("visits",),
            ("visits.find", "visits.host_names", "visits.usage"),
            ("visits.probe",),
            ("visits.visit",),
            ("visits.attaching", "visits.dashboard", "visits.ps", "visits.top"),
            ("visits.prompt",),
        ),
    ),
    ("", (("job", "joining", "reporting", "runner"), ("early",), ("factory",), ("",), ("cli",), ("__main__",))),
)
ORDER = tuple(names for _, lines in ROOMS for names in lines)
LINE = {name: number for number, names in enumerate(ORDER) for name in names}
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    for file in PACKAGE.rglob("*.py")
)


def source(module: str) -> Path:
    plain = PACKAGE / (module.replace(".", "/") + ".py")
    return plain if module and plain.exists() else PACKAGE / module.replace(".", "/") / "__init__.py"


def imports(module: str) -> list[tuple[str, str, bool]]:
    """What a module imports: absolute name, name inside the package ("" for the package itself), whether on import."""
    tree = ast.parse(source(module).read_text())
    package = module if source(module).name == "__init__.py" else module.rpartition(".")[0]
    deferred = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        at_once = id(node) not in deferred
        if isinstance(node, ast.Import):
            found += [(alias.name, "", at_once) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [part for part in package.split(".") if part]
            base = base[: len(base) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *(node.module.split(".") if node.module else [])])
            if not node.level:
                found.append((prefix, prefix.removeprefix("batchlet").lstrip("."), at_once))
                continue
            for alias in node.names:
                inner = f"{prefix}.{alias.name}".lstrip(".")
                found.append((f"batchlet.{inner}", inner if inner in LINE else prefix, at_once))
    return found


def inner_imports(module: str) -> set[str]:
    return {inner for name, inner, _ in imports(module) if name.split(".")[0] == "batchlet"}


def test_every_module_has_its_place_in_the_way_of_the_data():
    assert [module for module in MODULES if module not in LINE] == [], "add the new module to ORDER"


@pytest.mark.parametrize("module", [module for module in MODULES if module in LINE])
def test_a_module_imports_only_from_before_it_in_the_way_of_the_data(module):
    assert {name for name in inner_imports(module) if LINE.get(name, 99) >= LINE[module]} == set()


def test_no_module_imports_itself_in_a_circle():
    circle = {module: inner_imports(module) & set(MODULES) for module in MODULES}
    # Take away what imports nothing that is left, and what nothing that is left imports.
    while free := {
        module
        for module, needs in circle.items()
        if not needs & set(circle) or not any(module in others for others in circle.values())
    }:
        for module in free:
            del circle[module]
    assert sorted(circle) == [], "these modules import each other"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_longer_than_400_lines_and_no_class_longer_than_300(module):
    text = source(module).read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < 300, node.name


def test_the_reader_of_imports_sees_what_there_is():
    assert {"errors"} <= inner_imports("settings")
    assert {"environments.base", "errors"} <= inner_imports("environments.slurm")
    assert {"environments.base", "resources", "settings", "errors"} <= inner_imports("plan")
    assert any(name == "psutil" and not at_once for name, _, at_once in imports("network"))


# What is imported when a cluster of jobs is made, and only then.
OF_JOBS = {"jobs.adaptive", "jobs.cluster", "jobs.desk", "jobs.job", "jobs.keeper", "jobs.kept_cluster", "jobs.options"}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if not module.startswith("dask_backend") and module not in OF_JOBS]
)
def test_only_the_dask_backend_imports_dask_when_they_are_imported(module):
    top = {name.split(".")[0] for name, _, at_once in imports(module) if at_once}
    assert top & {"dask", "distributed", "tornado"} == set()


def child(code: str, *options: str, environ: dict[str, str] | None = None, cwd: Path | None = None):
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env=clean | (environ or {}), cwd=cwd,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_importing_batchlet_is_light():
    trace = child("import batchlet", "-X", "importtime").stderr
    loaded = {
        line.rpartition("|")[2].strip().split(".")[0] for line in trace.splitlines() if line.startswith("import time:")
    }
    assert {"batchlet", "marshal"} <= loaded
    # All ranks of a node import this at the same moment, and most of them nothing else, ever.
    assert loaded & (HEAVY | {"json", "re", "enum", "socket", "signal", "typing", "dataclasses", "subprocess"}) == set()


def test_importing_batchlet_needs_the_standard_library_alone():
    code = (
        "import sys, json; before = set(sys.modules); import batchlet; "
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    loaded = set(json.loads(child(code).stdout)) - {"batchlet"}
    assert loaded - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("rank", range(4))
def test_a_rank_that_knows_its_plan_has_still_loaded_nothing_heavy(tmp_path, rank):
    code = (
        "import sys, json, batchlet; runner = batchlet.BatchletRunner(); "
        "print(json.dumps([runner.role, runner.plan.rank, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    environ = dict(STEPS["mem"].tasks[rank].env)
    role, planned, loaded = json.loads(child(code, environ=environ, cwd=tmp_path).stdout)
    assert (role, planned) == (("scheduler", "client", "worker", "worker")[rank], rank)
    assert set(loaded) & HEAVY == set()


SIDE_EFFECTS = """
import atexit, gc, json, logging, os, signal, sys, threading, warnings

def state():
    return {
        "signals": {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "threads": [thread.name for thread in threading.enumerate()],
        "children": open(f"/proc/self/task/{os.getpid()}/children").read() if sys.platform == "linux" else "",
        "open files": sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else "",
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.displayhook, threading.excepthook, sys.unraisablehook)],
        "exit": atexit._ncallbacks(),
        "warnings": repr(warnings.filters),
        "loggers": [repr(logging.getLogger().handlers), logging.getLogger().level],
        "directory": [os.getcwd(), sorted(os.listdir("."))],
    }

before = state()
import batchlet
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""


def test_importing_batchlet_changes_nothing(tmp_path):
    done = child(SIDE_EFFECTS, cwd=tmp_path)
    assert json.loads(done.stdout) == {}
    assert done.stderr == ""

"""What Batchlet uses of dask-jobqueue, and of Dask's own clusters, beside their documentation."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import signal

import dask
import distributed
import pytest
from distributed.deploy import Cluster, SpecCluster
from distributed.deploy.adaptive import Adaptive

from batchlet.dask_backend import tuning
from batchlet.jobs import job as jobs
from batchlet.jobs.systems import SYSTEMS


def test_dask_jobqueue_is_imported_without_a_change_of_the_users_handler_of_interrupts():
    before = signal.getsignal(signal.SIGINT)
    jobs.load()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_cluster_of_jobs_has_the_methods_that_are_overridden_or_called():
    cluster = jobs.load().JobQueueCluster
    for name in ("_get_worker_security", "_start", "_close", "_correct_state", "_wait_for_workers", "new_worker_spec"):
        assert callable(getattr(cluster, name)), name
    assert issubclass(cluster, SpecCluster)
    taken = inspect.signature(cluster).parameters
    assert {
        "job_cls",
        "loop",
        "security",
        "silence_logs",
        "name",
        "asynchronous",
        "scheduler_options",
        "scheduler_cls",
    } <= set(taken)
    assert {"Adaptive"} <= set(inspect.signature(Cluster.adapt).parameters)


def test_adaptive_scaling_asks_its_own_method():
    assert inspect.iscoroutinefunction(Adaptive.adapt)
    for name in ("target", "workers_to_close"):
        assert inspect.iscoroutinefunction(getattr(Adaptive, name)), name


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_each_systems_job_is_submitted_through_the_methods_that_are_overridden(system):
    jobs.load()
    module, _, name = system.job_class.rpartition(".")
    base = getattr(importlib.import_module(module), name)
    for method in ("_submit_job", "_call", "_job_id_from_submit_output", "job_file", "job_script"):
        assert callable(getattr(base, method)), method
    taken = set(inspect.signature(importlib.import_module("dask_jobqueue.core").Job).parameters)
    assert {
        "cores",
        "memory",
        "processes",
        "python",
        "worker_command",
        "worker_extra_args",
        "job_script_prologue",
    } <= taken


def test_a_scheduler_whose_workers_are_jobs_takes_what_it_does_not_know_yet_for_long_unless_the_user_has_said_how_long():
    async def taken(settings: dict[str, str]) -> float:
        with dask.config.set(settings):
            return distributed.Scheduler(dashboard=False, dashboard_address="127.0.0.1:0").UNKNOWN_TASK_DURATION

    name = "distributed.scheduler.unknown-task-duration"
    assert asyncio.run(taken(tuning.for_jobs())) == 10
    with dask.config.set({name: "2s"}):
        assert asyncio.run(taken(tuning.for_jobs())) == 2

"""The public surface, pinned: a change here is a change for users."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil

import pytest

import batchlet

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(batchlet.__path__, "batchlet.") if "__main__" not in module.name
)


def test_the_public_names_are_these_and_no_others():
    assert sorted(batchlet.__all__) == [
        "BatchletCluster",
        "BatchletError",
        "BatchletRunner",
        "ClusterLostError",
        "InputError",
        "StartTimeoutError",
        "__version__",
        "attach",
        "cluster",
    ]


@pytest.mark.parametrize("name", batchlet.__all__)
def test_every_public_name_exists(name):
    assert getattr(batchlet, name) is not None


@pytest.mark.parametrize("name", [name for name in batchlet.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name):
    assert (inspect.getdoc(getattr(batchlet, name)) or "").strip()


def test_the_version_is_that_of_the_installed_distribution():
    assert batchlet.__version__ == importlib.metadata.version("dask-batchlet")


def test_every_option_of_the_runner_is_a_keyword():
    parameters = inspect.signature(batchlet.BatchletRunner).parameters.values()
    assert {parameter.kind for parameter in parameters} <= {
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_a_module_exports_exists_and_the_module_is_documented(name):
    if name == "batchlet.environments.mpi" or name.startswith("batchlet.rendezvous.mpi"):
        pytest.importorskip("mpi4py")
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    missing = [exported for exported in getattr(module, "__all__", ()) if not hasattr(module, exported)]
    assert missing == []

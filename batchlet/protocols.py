"""Which of Dask's protocols can be used, and what to say of those that cannot.

UCX brings InfiniBand, RoCE and NVLink to Dask, by a package of its own. It encrypts nothing.
"""

from __future__ import annotations

import sys

from . import entry_points

__all__ = ["problem_with", "security_off"]

_UCX = ("ucx", "ucxx")
# The group in which packages name the protocols that they bring to Dask.
_BACKENDS = "distributed.comm.backends"


def _name(protocol: str) -> str:
    return protocol.partition("://")[0]


def security_off(protocol: str | None) -> str:
    """Say, for the line at the start, that a run is open to others, and whether its protocol could not be otherwise."""
    name = _name(protocol or "")
    return "security off" + (f" ({name} does not encrypt)" if name in _UCX else "")


def problem_with(protocol: str, *, secure: bool, variable: str) -> str | None:
    """Say why a protocol cannot be used, and what to do; `None` if it can.

    Parameters
    ----------
    protocol : str
        As Dask calls it, with or without ``://``.
    secure : bool
        Whether all connections are to be encrypted.
    variable : str
        The environment variable that can say otherwise.

    Returns
    -------
    str or None
        The rest of a message that begins with what was given.
    """
    name = _name(protocol)
    if secure and name != "tls":
        what = "does not encrypt" + (" (UCX cannot)" if name in _UCX else "")
        return (
            f"{what}, but security is on. Add security=False ({variable}=false) if nobody "
            "else uses the network and the nodes, or leave the protocol out."
        )
    import importlib.util

    # Before 2025 `ucx` was Dask's own, on the package ucx-py.
    there = name in entry_points.found(_BACKENDS) if name in _UCX else True
    if there or (name == "ucx" and importlib.util.find_spec("ucp") is not None):
        return None
    return (
        f"needs UCX for Dask, which {sys.executable} does not have. Install it there: pip install distributed-ucxx-cu13 "
        "(or -cu12, as your CUDA driver is; it works without a GPU too) or conda install -c rapidsai -c conda-forge "
        "distributed-ucxx. Or leave the protocol out."
    )

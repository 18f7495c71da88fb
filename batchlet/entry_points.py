"""What other packages add to Batchlet, as their entry points say; nothing here is paid for where nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ENVIRONMENTS", "found"]

#: The group in which a package names its environments: ``flux = "batchlet_flux:Flux"``.
ENVIRONMENTS = "batchlet.environments"


def found(group: str) -> Mapping[str, Any]:
    """Look for the entry points of a group, by their names and in the order of these, the same on every rank.

    Reads the metadata of all that is installed, which takes some 10 ms (with 60 packages on a local disk).

    Returns
    -------
    mapping of str to importlib.metadata.EntryPoint
        Nothing of it is loaded yet.
    """
    # Takes 20 ms to import.
    from importlib.metadata import entry_points

    every = {entry.name: entry for entry in entry_points(group=group)}
    return {name: every[name] for name in sorted(every)}

"""What became of tasks, by Dask's task prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TaskGroups"]

# Groups that are shown; what took least is left out.
_SHOWN = 200


class TaskGroups:
    """The task groups of all blocks; their figures come as what they are since their block began."""

    def __init__(self) -> None:
        self._before: dict[str, dict[str, Any]] = {}
        self._now: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Begin another block."""
        self._before, self._now = self._all(), {}

    def take(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Take figures by prefix: the fields of `task_groups` in the schema; `first` and `last` are seconds since the epoch."""
        for name, figures in groups.items():
            self._now[name] = {**_group(name), **figures}

    def longest(self) -> list[dict[str, Any]]:
        """Give those that took most time, the longest first."""
        return sorted(self._all().values(), key=lambda group: -group["seconds"])[:_SHOWN]

    def _all(self) -> dict[str, dict[str, Any]]:
        groups = {name: dict(group) for name, group in self._before.items()}
        for name, group in self._now.items():
            _add(groups.setdefault(name, _group(name)), group)
        return groups


def _group(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "tasks": 0,
        "failed": 0,
        "seconds": 0.0,
        "transfer_seconds": 0.0,
        "result_bytes": 0,
        "first": None,
        "last": None,
    }


def _add(group: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add to a task group what another block brought to it."""
    for name in ("tasks", "failed", "seconds", "transfer_seconds", "result_bytes"):
        group[name] += more[name]
    for name, choose in (("first", min), ("last", max)):
        known = [value for value in (group[name], more[name]) if value is not None]
        group[name] = choose(known) if known else None

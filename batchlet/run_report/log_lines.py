"""Lines of logs that a report keeps."""

from __future__ import annotations

import collections
from typing import Any

__all__ = ["LogLines"]

# Lines of the log of one process, and of all. The newest are kept.
_LINES, _ALL_LINES = 50, 2000


class LogLines:
    """The newest lines of each process.

    Attributes
    ----------
    dropped : int
        Lines that there was no room for.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], collections.deque[tuple[int, dict[str, Any]]]] = {}
        self._number = 0
        self.dropped = 0

    def add(self, line: dict[str, Any]) -> None:
        """Take a line, as the schema has them."""
        kept = self._lines.setdefault((line["who"], line["node"]), collections.deque())
        if len(kept) >= max(2, min(_LINES, _ALL_LINES // len(self._lines))):
            kept.popleft()
            self.dropped += 1
        self._number += 1
        kept.append((self._number, line))

    def lines(self) -> list[dict[str, Any]]:
        """Give them all in the order in which they came."""
        found = sorted((entry for kept in self._lines.values() for entry in kept), key=lambda entry: entry[0])
        return [line for _, line in found[-_ALL_LINES:]]

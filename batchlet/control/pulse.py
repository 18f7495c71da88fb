"""The scheduler's signs of life."""

from __future__ import annotations

__all__ = ["Pulse"]


class Pulse:
    """How long nothing has been heard; nothing is missed before the first sign."""

    def __init__(self) -> None:
        self._silence: float | None = None

    def beat(self) -> None:
        """Note a sign of life."""
        # Below zero: what the clock tells next began before this, and does not count.
        self._silence = -1.0

    def silence_after(self, seconds: float) -> float:
        """Let so many seconds pass, and give those since the last sign."""
        if self._silence is None:
            return 0.0
        self._silence = self._silence + seconds if self._silence >= 0 else 0.0
        return self._silence

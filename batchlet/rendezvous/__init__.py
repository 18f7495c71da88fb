"""How the ranks meet."""

from __future__ import annotations

from .base import Meeting, Rendezvous
from .file import FileRendezvous
from .mpi import MpiRendezvous, MpiUnavailableError

__all__ = ["FileRendezvous", "Meeting", "MpiRendezvous", "MpiUnavailableError", "Rendezvous"]

"""How the ranks meet."""

from __future__ import annotations

from .base import CoordinatorRecord, Rendezvous
from .file import FileRendezvous
from .mpi import MpiRendezvous, MpiUnavailableError

__all__ = ["CoordinatorRecord", "FileRendezvous", "MpiRendezvous", "MpiUnavailableError", "Rendezvous"]

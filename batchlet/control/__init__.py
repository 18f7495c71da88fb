"""Who is alive, who has failed, when does the run end: one connection from every rank to the coordinator on rank 0."""

from __future__ import annotations

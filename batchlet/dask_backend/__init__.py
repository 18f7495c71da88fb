"""The roles: the only modules that import Dask."""

from __future__ import annotations

"""The undocumented corners of Dask, Tornado and CPython that Batchlet uses: each is one function here, with its reason.

What a function says of versions was read or seen there; ``tests/contract`` has a test of its own for each of them, so that a
version that differs fails there by name. In a user's run it must not fail: what is gone costs what the function says.
"""

from __future__ import annotations

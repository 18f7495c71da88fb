"""The run's credentials in the form that Dask takes."""

from __future__ import annotations

import ssl
from typing import Any

from distributed.security import Security

from ..security import Credentials
from .compat.tls_connections import MemorySecurity

__all__ = ["RunSecurity", "is_same", "loader", "prepare", "security_for", "set_loaded"]

_loaded: Security | None = None


class RunSecurity(MemorySecurity):
    """Dask's `Security` with the credentials of one run; its contexts are made from memory, once for each purpose."""

    # No __slots__ of its own: the base class checks its keywords against them.

    def __init__(self, credentials: Credentials) -> None:
        pair = {
            f"tls_{role}_{part}": text
            for role in ("client", "scheduler", "worker")
            for part, text in (("key", credentials.key), ("cert", credentials.certificate))
        }
        super().__init__(require_encryption=True, tls_ca_file=credentials.certificate, **pair)
        self.credentials = credentials
        self._contexts: dict[ssl.Purpose, ssl.SSLContext] = {}

    def __reduce__(self) -> Any:
        return _of, (self.credentials,)

    def make_context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """Give the context for one side of all connections."""
        if purpose not in self._contexts:
            self._contexts[purpose] = self.credentials.context(purpose)
        return self._contexts[purpose]


_prepared: RunSecurity | None = None


def prepare(credentials: Credentials) -> None:
    """Make the contexts now, for all processes that will be forked from this one: it takes 3 ms."""
    global _prepared
    _prepared = RunSecurity(credentials)
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        _prepared.make_context(purpose)


def _of(credentials: Credentials) -> RunSecurity:
    """Give what was prepared for these credentials."""
    return _prepared if _prepared is not None and _prepared.credentials == credentials else RunSecurity(credentials)


def security_for(wanted: object, credentials: Credentials | None) -> Security:
    """Give Dask's security for the ``security`` option: the run's own, what the user passed, or none."""
    if isinstance(wanted, Security):
        return wanted
    return Security() if wanted is False or credentials is None else _of(credentials)


def is_same(one: Security, other: object) -> bool:
    """Whether two ranks have the same security object, as far as its fields tell."""
    return isinstance(other, Security) and all(
        getattr(one, name, None) == getattr(other, name, None) for name in Security.__slots__
    )


def set_loaded(security: Security | None) -> None:
    """Set what `loader` gives."""
    global _loaded
    _loaded = security


def loader(info: dict[str, str]) -> Security | None:  # noqa: ARG001
    """Give the credentials to a ``Client()`` without arguments (``distributed.client.security-loader``)."""
    return _loaded

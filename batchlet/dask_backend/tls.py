"""The run's credentials in the form that Dask takes."""

from __future__ import annotations

import ssl
from typing import Any

from distributed.security import Security

from ..security import Credentials
from ..settings import Settings
from .compat import tls_backend
from .compat.tls_connections import MemorySecurity
from .node_links import NodeLinks

__all__ = ["RunSecurity", "is_same", "loader", "prepare", "security_for", "set_loaded"]

_loaded: Security | None = None


class RunSecurity(MemorySecurity):
    """Dask's `Security` with the credentials of one run; its contexts are made from memory, once for each purpose.

    Parameters
    ----------
    credentials : Credentials
        The run's.
    node_links : bool
        Whether processes on one host talk through Unix sockets; one that does not is reached by TLS.
    """

    # No __slots__ of its own: the base class checks its keywords against them.

    def __init__(self, credentials: Credentials, *, node_links: bool = True) -> None:
        pair = {
            f"tls_{role}_{part}": text
            for role in ("client", "scheduler", "worker")
            for part, text in (("key", credentials.key), ("cert", credentials.certificate))
        }
        super().__init__(require_encryption=True, tls_ca_file=credentials.certificate, **pair)
        self.credentials = credentials
        self._links = NodeLinks(credentials) if node_links else None
        self._contexts: dict[ssl.Purpose, ssl.SSLContext] = {}

    def __reduce__(self) -> Any:
        return _of, (self.credentials, self._links is not None)

    def make_context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """Give the context for one side of all connections."""
        if purpose not in self._contexts:
            self._contexts[purpose] = context = self.credentials.context(purpose)
            if self._links is not None:
                tls_backend.offer(context, self._links)
        return self._contexts[purpose]


_prepared: RunSecurity | None = None


def prepare(credentials: Credentials) -> None:
    """Make the contexts now, for all processes that will be forked from this one: it takes 3 ms."""
    global _prepared
    _prepared = RunSecurity(credentials)
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        _prepared.make_context(purpose)


def _of(credentials: Credentials, node_links: bool) -> RunSecurity:
    """Give what was prepared for these credentials."""
    if node_links and _prepared is not None and _prepared.credentials == credentials:
        return _prepared
    return RunSecurity(credentials, node_links=node_links)


def security_for(settings: Settings, credentials: Credentials | None) -> Security:
    """Give Dask's security for what the user asked for: the run's own, an object that they passed, or none."""
    if isinstance(settings.security, Security):
        return settings.security
    if settings.security is False or credentials is None:
        return Security()
    return _of(credentials, settings.node_links)


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

"""The run's credentials in the form that Dask takes."""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable
from typing import Any

from distributed.security import Security

from ..security import Credentials

__all__ = ["RunSecurity", "defer_authorities", "loader", "prepare", "security_for", "set_loaded"]

_loaded: Security | None = None


class RunSecurity(Security):  # type: ignore[misc]
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

    def _attr_to_dict(self) -> dict[str, object]:
        return {"require_encryption": True, "credentials": "Temporary (In-memory)"}

    def _get_tls_context(self, tls: Any, purpose: ssl.Purpose) -> ssl.SSLContext:  # noqa: ARG002
        if purpose not in self._contexts:
            self._contexts[purpose] = self.credentials.context(purpose)
        return self._contexts[purpose]


class _Deferred(ssl.SSLContext):
    """A context that is made when a connection first needs it."""

    _make: Callable[[], ssl.SSLContext]

    def wrap_socket(self, *positional: Any, **keywords: Any) -> ssl.SSLSocket:
        return self._make().wrap_socket(*positional, **keywords)

    def wrap_bio(self, *positional: Any, **keywords: Any) -> ssl.SSLObject:
        return self._make().wrap_bio(*positional, **keywords)


def defer_authorities() -> None:
    """Read the certificates of all authorities when they are needed, in this process and those forked from it.

    Tornado (6.6) has every process read them that accepts a TLS connection, which does not use them: 25 ms and a megabyte.
    """
    iostream: Any = importlib.import_module("tornado.iostream")
    make = getattr(iostream, "_client_ssl_defaults", None)
    if callable(make):
        context = _Deferred(ssl.PROTOCOL_TLS_CLIENT)
        context._make = make
        iostream._client_ssl_defaults = lambda: context


_prepared: RunSecurity | None = None


def prepare(credentials: Credentials) -> None:
    """Make the contexts now, for all processes that will be forked from this one: it takes 3 ms."""
    global _prepared
    _prepared = RunSecurity(credentials)
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        _prepared._get_tls_context(None, purpose)


def _of(credentials: Credentials) -> RunSecurity:
    """Give what was prepared for these credentials."""
    return _prepared if _prepared is not None and _prepared.credentials == credentials else RunSecurity(credentials)


def security_for(wanted: object, credentials: Credentials | None) -> Security:
    """Give Dask's security for the ``security`` option: the run's own, what the user passed, or none."""
    if isinstance(wanted, Security):
        return wanted
    return Security() if credentials is None else _of(credentials)


def set_loaded(security: Security | None) -> None:
    """Set what `loader` gives."""
    global _loaded
    _loaded = security


def loader(info: dict[str, str]) -> Security | None:  # noqa: ARG001
    """Give the credentials to a ``Client()`` without arguments (``distributed.client.security-loader``)."""
    return _loaded

"""Corners of TLS in Dask and Tornado: where contexts come from, and connections that have not proved who they are.

Seen with distributed 2024.8.0 to 2026.8.0 and Tornado 6.4 to 6.6.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import resource
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed.security import Security

__all__ = ["MemorySecurity", "defer_authorities", "limit_handshakes", "limited_handshakes"]


class MemorySecurity(Security):  # type: ignore[misc]
    """Dask's `Security` that takes its contexts from `make_context`, and tells nothing of itself.

    Dask makes a context for each listener and connection, in ``_get_tls_context``, and writes certificates to files for that.
    It shows its attributes, by ``_attr_to_dict``. If the one is gone Dask makes contexts as ever, from the texts that the
    object was made with; without the other it shows what any such object shows.
    """

    # No __slots__ of its own: the base class checks its keywords against them.

    def make_context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """Make the context for one side of all connections, or give the one that was made before."""
        raise NotImplementedError

    def _attr_to_dict(self) -> dict[str, object]:
        return {"require_encryption": True, "credentials": "Temporary (In-memory)"}

    def _get_tls_context(self, tls: Any, purpose: ssl.Purpose) -> ssl.SSLContext:  # noqa: ARG002
        return self.make_context(purpose)


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
    Before, ``_client_ssl_defaults`` is no function, and they were read when Tornado was imported.
    """
    iostream: Any = importlib.import_module("tornado.iostream")
    make = getattr(iostream, "_client_ssl_defaults", None)
    if callable(make):
        context = _Deferred(ssl.PROTOCOL_TLS_CLIENT)
        context._make = make
        iostream._client_ssl_defaults = lambda: context


# Files that a process may open while connections come in: those that Tornado accepts at once (128), and as many again.
_RESERVE = 256
# Connections that may be waiting for the end of their handshake at one listener, where open files are without limit.
_MOST = 4096
_CONNECT = "distributed.comm.timeouts.connect"
_lock = threading.Lock()
_limit_count = 0


class _Unfinished:
    """The connections to one listener whose handshake is not finished, the oldest first."""

    def __init__(self) -> None:
        self._streams: dict[Any, asyncio.TimerHandle] = {}
        self._most = _MOST

    def add(self, stream: Any) -> None:
        """Note a new connection, and give up the oldest ones if it leaves too little room."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # At most a quarter is kept free where that is less: a small limit may be needed nearly all.
        allowed = None if soft == resource.RLIM_INFINITY else soft - min(_RESERVE, soft // 4)
        # Who makes a connection has given it up by then, too.
        patience = parse_timedelta(dask.config.get(_CONNECT, "30s"))
        self._streams[stream] = asyncio.get_running_loop().call_later(patience, self._drop, stream)
        # A new file gets the lowest number that is free: all below are in use. What is given up makes room below, so that the
        # next numbers say nothing; from here on there are no more than now.
        number = stream.socket.fileno() if stream.socket is not None else -1
        if allowed is not None and number >= allowed:
            self._most = min(self._most, max(1, len(self._streams) - 1))
        while len(self._streams) > self._most:
            self._drop(next(iter(self._streams)))

    def finish(self, stream: Any) -> None:
        """Forget a connection: its handshake is done, or has failed."""
        timer = self._streams.pop(stream, None)
        if timer is not None:
            timer.cancel()
        if len(self._streams) < self._most // 2:
            self._most = _MOST

    def _drop(self, stream: Any) -> None:
        self.finish(stream)
        stream.close()


def limit_handshakes() -> bool:
    """Keep connections that never finish their TLS handshake from using up the open files of this process.

    Dask waits for each of them without an end (`TLSListener._prepare_stream`, for each stream that `_handle_stream` gets).
    With this they are given up after ``distributed.comm.timeouts.connect``, and the oldest of them at once where open files
    run short. If these methods are gone, there is no limit, as there is none in Dask.

    Returns
    -------
    bool
        Whether it was done: not if that is not possible, or has been done before.
    """
    listener: Any = getattr(importlib.import_module("distributed.comm.tcp"), "TLSListener", None)
    handle, prepare = getattr(listener, "_handle_stream", None), getattr(listener, "_prepare_stream", None)
    if handle is None or prepare is None or hasattr(handle, "_original"):
        return False

    def handle_limited(self: Any, stream: Any, address: Any) -> Any:
        # Not a coroutine: this runs before the next connection is accepted. No fault of ours is to cost a connection.
        with contextlib.suppress(Exception):
            self.__dict__.setdefault("_batchlet_unfinished", _Unfinished()).add(stream)
        return handle(self, stream, address)

    async def prepare_limited(self: Any, stream: Any, address: Any) -> Any:
        try:
            # Nobody would tell it of the end of a stream that was closed before.
            return None if stream.closed() else await prepare(self, stream, address)
        finally:
            unfinished = self.__dict__.get("_batchlet_unfinished")
            if unfinished is not None:
                unfinished.finish(stream)

    handle_limited._original = handle  # type: ignore[attr-defined]
    prepare_limited._original = prepare  # type: ignore[attr-defined]
    listener._handle_stream, listener._prepare_stream = handle_limited, prepare_limited
    return True


@contextlib.contextmanager
def limited_handshakes() -> Iterator[None]:
    """Do as `limit_handshakes` for as long as the block runs; the listeners that were started meanwhile keep to it."""
    global _limit_count
    with _lock:
        _limit_count += 1
        ours = limit_handshakes() or _limit_count > 1
    try:
        yield
    finally:
        with _lock:
            _limit_count -= 1
            if ours and _limit_count == 0:
                _unlimit()


def _unlimit() -> None:
    listener: Any = importlib.import_module("distributed.comm.tcp").TLSListener
    for name in ("_handle_stream", "_prepare_stream"):
        original = getattr(getattr(listener, name), "_original", None)
        if original is None:
            continue
        if getattr(listener.__mro__[1], name, None) is original:
            delattr(listener, name)  # it was inherited
        else:
            setattr(listener, name, original)

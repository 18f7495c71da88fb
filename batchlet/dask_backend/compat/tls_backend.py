"""Corners of Dask's TLS backend: how connections of another kind stand in for TLS, and what they share with it.

Dask finds the backend of a scheme in a registry, which is its documented plug-in point; how a backend does its work is not
documented. Seen with distributed 2024.8.0 to 2026.8.0 and Tornado 6.4 to 6.6.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import ssl
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import dask.config
from distributed.comm import CommClosedError, parse_host_port, registry
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import add_accept_handler

__all__ = ["Links", "offer"]

_tcp: Any = importlib.import_module("distributed.comm.tcp")
_BACKLOG = "distributed.comm.socket-backlog"
# Bytes.
_ON_THE_WAY = 1 << 20
_MOST = 1 << 40
# What this relies on; without it there is TLS alone.
_NEEDED = {
    "TCP": ("read", "write", "abort"),
    "TLSBackend": ("get_connector", "get_listener"),
    "TLSConnector": ("connect", "prefix"),
    "TLSListener": ("start", "stop", "on_connection", "contact_address", "prefix"),
}


def _class(name: str) -> Any:
    return getattr(_tcp, name, object)


class Links(Protocol):
    """Sockets that may stand in for TLS between the processes of a run on one host: `batchlet.dask_backend.node_links`."""

    def listen(self, host: str, port: int, backlog: int) -> socket.socket | None:
        """Listen for those who would connect to this host and port; `None` if that cannot be."""

    def connect(self, host: str, port: int) -> socket.socket | None:
        """Connect to who listens for that host and port, without waiting; `None` if there is nobody of ours."""

    def may_enter(self, connection: socket.socket) -> bool:
        """Whether a word may be said to who has connected."""

    async def admit(self, stream: IOStream) -> bool:
        """Find out whether who has connected is of the run."""

    async def enter(self, stream: IOStream) -> bool:
        """Show who listens that this process is of the run, and find out the same of them."""


_links: weakref.WeakKeyDictionary[ssl.SSLContext, Links] = weakref.WeakKeyDictionary()


def offer(context: ssl.SSLContext, links: Links) -> bool:
    """Let connections and listeners that are made with this context use `links` where they can.

    In this process ``tls://`` stays what it is for every other context, and between hosts.

    Returns
    -------
    bool
        Whether it was done: not with a Dask that is built in another way.
    """
    if not all(hasattr(_class(name), each) for name, methods in _NEEDED.items() for each in methods):
        return False
    present = registry.backends.get("tls")
    if type(present) is _tcp.TLSBackend:
        registry.backends["tls"] = _Backend()
    elif not isinstance(present, _Backend):
        # Another package's.
        return False
    _links[context] = links
    return True


class _Socket(socket.socket):
    """A Unix socket that can be asked for what only TCP has: Dask sets the time-outs of each connection."""

    def setsockopt(self, level: int, *option: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *option)


def _stream(connection: socket.socket) -> IOStream:
    # What is written waits in the kernel until the other side reads it: at most half a megabyte where an administrator has
    # not allowed more. With the usual 200 KB both sides are woken more often.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ON_THE_WAY)
    return IOStream(_Socket(fileno=connection.detach()), max_buffer_size=getattr(_tcp, "MAX_BUFFER_SIZE", _MOST))


def _links_of(arguments: dict[str, Any]) -> Links | None:
    context = arguments.get("ssl_context")
    # Who asks for a certificate with a certain name gets one.
    return _links.get(context) if isinstance(context, ssl.SSLContext) and "server_hostname" not in arguments else None


class NodeLink(_class("TCP")):  # type: ignore[misc]
    """A connection inside a host, with Dask's own words over it."""


class _Connector(_class("TLSConnector")):  # type: ignore[misc]
    """Connects by a link if there is one, else by TLS.

    Dask makes one for each connection, and has it try again where a try takes too long (a fifth of
    ``distributed.comm.timeouts.connect``) or fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given_up = False

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Any:
        links = _links_of(arguments)
        if links is not None and not self._given_up:
            # Unless it comes back: whoever keeps silent there, the next try is by TLS.
            self._given_up = True
            comm = await self._by_link(links, address, deserialize)
            self._given_up = False
            if comm is not None:
                return comm
        return await super().connect(address, deserialize=deserialize, **arguments)

    async def _by_link(self, links: Links, address: str, deserialize: bool) -> Any:
        host, port = parse_host_port(address)
        connection = links.connect(host, port)
        if connection is None:
            return None
        stream = _stream(connection)
        try:
            if not await links.enter(stream):
                stream.close()
                return None
        except StreamClosedError:
            return None
        except BaseException:
            stream.close()
            raise
        # Who connects has no port of its own.
        return NodeLink(stream, self.prefix + _place(host, 0), self.prefix + address, deserialize)


class _Listener(_class("TLSListener")):  # type: ignore[misc]
    """Listens as ever, and for links besides."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self._links = _links_of(keywords)
        self._link: socket.socket | None = None
        self._ignore: Callable[[], None] | None = None
        self._strangers: set[IOStream] = set()

    async def start(self) -> None:
        await super().start()
        if self._links is None:
            return
        host, port = parse_host_port(self.contact_address.removeprefix(self.prefix))
        self._link = self._links.listen(host, port, int(dask.config.get(_BACKLOG)))
        if self._link is not None:
            self._here, self._there = self.contact_address, self.prefix + _place(host, 0)
            self._ignore = add_accept_handler(self._link, self._accept)

    def stop(self) -> None:
        if self._link is not None and self._ignore is not None:
            self._ignore()
            self._link.close()
            self._link = None
            while self._strangers:
                self._strangers.pop().close()
        super().stop()

    def _accept(self, connection: socket.socket, _address: Any) -> None:
        assert self._links is not None
        if not self._links.may_enter(connection):
            connection.close()
            return
        stream = _stream(connection)
        self._strangers.add(stream)
        IOLoop.current().spawn_callback(self._serve, stream, self._links)

    async def _serve(self, stream: IOStream, links: Links) -> None:
        try:
            admitted = await links.admit(stream)
        except StreamClosedError:
            return
        except BaseException:
            stream.close()
            raise
        finally:
            self._strangers.discard(stream)
        if not admitted or self._link is None:
            stream.close()
            return
        comm = NodeLink(stream, self._here, self._there, self.deserialize)
        comm.allow_offload = self.allow_offload
        with contextlib.suppress(CommClosedError):
            await self.on_connection(comm)
            await self.comm_handler(comm)


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Backend(_class("TLSBackend")):  # type: ignore[misc]
    """Dask's backend of ``tls://``, with links where both sides have them."""

    _connector_class = _Connector
    _listener_class = _Listener

"""Asking runs whether they are alive, any number of them at once, and what cluster they have at this moment."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .. import open_files
from ..control.greeting import ProtocolError
from ..control.handshake import connect, receive
from ..control.messages import Failed, Hello, Pause, SchedulerStarted, Stop, Welcome
from ..control.visitors import VISITOR
from ..node import inputs
from ..rendezvous import CoordinatorRecord
from ..security import Credentials, dashboard_token, pinned
from ..settings import PREFIX, Settings
from .find import Run

__all__ = ["Cluster", "Life", "Seen", "cluster_of", "probe", "security_of"]

# Seconds for the coordinator of a run that is alive to answer: a hundredth, where nothing is slow.
_ANSWER = 3.0
# Connections at one moment, where the limit of open files allows it.
_AT_ONCE = 512
# Options that a client has to have as the run has them.
_OF_LINKS = ("security", "node_links")


class Life(Enum):
    """What is known of a run after it was asked."""

    ALIVE = "alive"
    #: Nobody listens at its address, or somebody else who cannot prove to be this run: it is dead.
    DEAD = "dead"
    #: It has not answered: it, its machine or the network between is too slow, or gone.
    SILENT = "silent"
    #: It listens on the loopback of another machine.
    ELSEWHERE = "elsewhere"
    #: Its record is not there or cannot be believed.
    UNREADABLE = "unreadable"
    OVER = "over"


@dataclass(frozen=True)
class Cluster:
    """The cluster that a run has at this moment.

    Parameters
    ----------
    address : str
        Of the scheduler.
    dashboard : tuple of str and int, optional
        Address and port.
    token : str, optional
        The secret part of the dashboard's address.
    launch : str
        Options and more; see `batchlet.node.inputs.to_text`.
    credentials : Credentials, optional
        The run's.
    """

    address: str
    dashboard: tuple[str, int] | None
    token: str | None
    launch: str
    credentials: Credentials | None


@dataclass(frozen=True)
class Seen:
    """What a run has answered.

    Parameters
    ----------
    life : Life
        Whether it is alive.
    cluster : Cluster, optional
        Its cluster; `None` while it has none.
    """

    life: Life
    cluster: Cluster | None = None


def cluster_of(
    record: CoordinatorRecord, credentials: Credentials | None, welcome: Welcome, started: SchedulerStarted
) -> Cluster:
    """Put together what the coordinator has said."""
    place = started.dashboard
    return Cluster(
        address=started.address,
        dashboard=(str(place[0]), int(place[1])) if place else None,
        token=None if _settings_of(welcome.launch).security is False else dashboard_token(record.secret),
        launch=welcome.launch,
        credentials=credentials,
    )


def security_of(cluster: Cluster) -> Any:
    """Give Dask's security with which a client connects to a cluster."""
    from ..dask_backend import tls

    return tls.security_for(_settings_of(cluster.launch), cluster.credentials)


def _settings_of(launch: str) -> Settings:
    """What the run's user has asked for of its connections; an object of theirs travels by value."""
    words = inputs.from_text(launch)
    try:
        options = inputs.unpack_options(words)[0]
    except Exception:  # noqa: BLE001 - something among the options can be read where the script is alone
        return Settings()
    known = {name: options[name] for name in _OF_LINKS if isinstance(options, Mapping) and name in options}
    names = {PREFIX + name.upper() for name in _OF_LINKS}
    variables = {name: value for name, value in words["variables"].items() if name in names}
    return Settings.resolve(known, variables)


def probe(runs: Sequence[Run], seconds: float = _ANSWER) -> list[Seen]:
    """Ask all these runs at once.

    Parameters
    ----------
    runs : sequence of Run
        Which.
    seconds : float
        How long each of them has to answer.

    Returns
    -------
    list of Seen
        One for each.
    """
    # In a thread of its own: in a notebook an event loop runs in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _probe(runs, seconds)).result()


async def _probe(runs: Sequence[Run], seconds: float) -> list[Seen]:
    open_files.make_room(0, len(runs))
    free = asyncio.Semaphore(min(_AT_ONCE, max(16, open_files.limit() // 2)))
    listening = await asyncio.gather(*(_listens(run, seconds, free) for run in runs))

    async def ask(run: Run, life: Life) -> Seen:
        if life is not Life.ALIVE or run.record is None:
            return Seen(life)
        async with free:
            return await _ask(run.record, seconds)

    return await asyncio.gather(*(ask(run, life) for run, life in zip(runs, listening, strict=True)))


async def _listens(run: Run, seconds: float, free: asyncio.Semaphore) -> Life:
    """Find out whether anybody listens at all, which costs little."""
    if run.record is None:
        return Life.DEAD if run.is_removed else Life.UNREADABLE
    if run.is_elsewhere:
        return Life.ELSEWHERE
    async with free:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(run.record.host, run.record.port), seconds)
        except ConnectionRefusedError:
            return Life.DEAD
        except (OSError, asyncio.TimeoutError):
            return Life.SILENT
        writer.transport.abort()
        return Life.ALIVE


async def _ask(record: CoordinatorRecord, seconds: float) -> Seen:
    # Without versions: who only looks may have others.
    hello = Hello(VISITOR, VISITOR, socket.gethostname())
    try:
        context = pinned(record.certificate) if record.certificate else None
        reader, writer, key = await asyncio.wait_for(
            connect(record.host, record.port, record.secret, hello, context), seconds
        )
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ProtocolError, asyncio.TimeoutError):
        # A coordinator with too many strangers sends some of them away.
        return Seen(Life.SILENT)
    except ssl.SSLError:
        return Seen(Life.DEAD)
    except OSError as error:
        return Seen(Life.DEAD if isinstance(error, ConnectionRefusedError) else Life.SILENT)
    welcome: Welcome | None = None
    try:
        while (message := await asyncio.wait_for(receive(reader), seconds)) is not None:
            match message:
                case Welcome():
                    welcome = message
                case SchedulerStarted() if welcome is not None:
                    credentials = Credentials(record.certificate, key) if record.certificate else None
                    return Seen(Life.ALIVE, cluster_of(record, credentials, welcome, message))
                case Pause():
                    return Seen(Life.ALIVE)
                case Stop() | Failed():
                    return Seen(Life.OVER)
    except asyncio.TimeoutError:
        return Seen(Life.SILENT)
    finally:
        writer.transport.abort()
    return Seen(Life.OVER)

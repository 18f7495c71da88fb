"""Who belongs to a run: who is there, who is still to come, and which workers they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..plan import WORKER
from . import wording
from .messages import Hello

__all__ = ["Peer", "Roster"]


@dataclass(eq=False)
class Peer:
    """Who is at the other end of a connection.

    Parameters
    ----------
    number : int
        Of the connection.
    name, role, node : str
        From its hello.
    brings : sequence of str
        Participants that come with it.
    plan : dict
        What it has brought: by participant and worker, threads and memory in bytes.
    left : bool
        Whether it has said that it leaves, or the connection has ended.
    paused : bool
        Whether it has no workers whose end that of a block waits for: a guest that has not told of any yet, and whoever has
        said that they are gone.
    block : int
        Of a scheduler: the block that it serves.
    replaceable_within : int
        See `batchlet.control.messages.Hello`.
    replaces : bool
        Whether it is in the place of an agent that has died.
    cut_off : bool
        Whether it has left because the network does not reach its node any more.
    """

    number: int
    name: str
    role: str
    node: str
    brings: Sequence[str] = ()
    plan: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    left: bool = False
    paused: bool = False
    block: int = 0
    replaceable_within: int = 0
    replaces: bool = False
    cut_off: bool = False


class Roster:
    """Everybody of a run.

    Parameters
    ----------
    node : str
        Name of rank 0's node.

    Attributes
    ----------
    joined : set of str
        Workers that the scheduler knows.
    """

    def __init__(self, node: str) -> None:
        self.joined: set[str] = set()
        self._block = 0
        self._peers: dict[int, Peer] = {}
        self._nodes: dict[int, str] = {0: node}
        self._with_agent: set[int] = set()
        self._expected: set[str] = set()
        self._came: set[str] = set()
        self._absent: set[str] = set()
        # Participants that were here and are gone, and where that was.
        self._died: dict[str, str] = {}

    def begin(self, participants: Iterable[str]) -> dict[str, str]:
        """Begin a block, for which these must come.

        Returns
        -------
        dict of str to str
            Those of them that have died before, with their nodes. From the second block on they are not waited for.
        """
        self._block += 1
        self.joined.clear()
        self._absent.clear()
        there = self.connected()
        for peer in there:
            peer.plan.clear()
        brought = {participant for peer in there for participant in peer.brings}
        self._expected = set(participants) | brought
        died = {name: node for name, node in self._died.items() if name in self._expected}
        if self._block > 1:
            self._expected -= set(died)
        return died

    def enter(self, number: int, hello: Hello) -> Peer:
        """Add a connection."""
        peer = Peer(number, hello.name, hello.role, hello.node, tuple(hello.brings), block=self._block)
        peer.replaceable_within = hello.replaceable_within
        self._peers[number] = peer
        self._expected |= set(peer.brings)
        if peer.role != WORKER:
            self._came.add(peer.name)
        else:
            self._with_agent |= set(hello.local_ranks)
        self._nodes |= dict.fromkeys(hello.local_ranks, peer.node)
        return peer

    def add_workers(self, peer: Peer, participant: str, workers: Sequence[Sequence[object]]) -> None:
        """Add a participant and its workers: name, threads, bytes of memory."""
        peer.plan[participant] = {str(name): (int(str(size[0])), int(str(size[1]))) for name, *size in workers}
        self._came.add(participant)
        self._absent.discard(participant)
        self._died.pop(participant, None)

    def remove(self, peer: Peer, participants: Iterable[str], *, for_good: bool = True) -> set[str]:
        """Take participants away with their workers, whose names are returned; they were here, and need no news any more.

        Unless it is `for_good`, they are expected again.
        """
        participants = list(participants)
        gone = {name for participant in participants for name in peer.plan.pop(participant, {})}
        self._came |= set(participants)
        self.joined -= gone
        if for_good:
            self.give_up(participants, peer.node)
        return gone

    def give_up(self, participants: Iterable[str], node: str) -> None:
        """Note that participants were here, on this node, and will not be here again."""
        self._died |= dict.fromkeys(participants, node)

    def expect_no_more(self, participants: Iterable[str], *, late: bool) -> None:
        """Do not wait for these; if they are only `late`, they may still come."""
        self._expected -= set(participants)
        if late:
            self._absent |= set(participants)

    def __getitem__(self, number: int) -> Peer:
        return self._peers[number]

    def connected(self, role: str | None = None, *, but: str | None = None) -> list[Peer]:
        """Those who are there, of this role only, or of every role but one."""
        return [
            peer for peer in self._peers.values() if not peer.left and role in (None, peer.role) and peer.role != but
        ]

    def had(self, role: str) -> bool:
        """Whether anybody of this role was ever there."""
        return any(peer.role == role for peer in self._peers.values())

    @property
    def nodes(self) -> int:
        """Number of nodes that anybody came from."""
        return len(set(self._nodes.values()))

    def without_agent(self, ranks: Iterable[int]) -> list[int]:
        """Give those of these ranks whose node no agent has come from."""
        return [rank for rank in ranks if rank not in self._with_agent]

    @property
    def awaited(self) -> bool:
        """Whether somebody may still come who is needed and has never been here."""
        return not self._expected <= self._came

    @property
    def all_met(self) -> bool:
        """Whether of those who were late everybody has come."""
        return not self._absent

    def planned(self) -> dict[str, tuple[int, int]]:
        """Threads and memory of each worker that there is or will be, by its name."""
        return {
            name: size for peer in self.connected() for workers in peer.plan.values() for name, size in workers.items()
        }

    def workers(self) -> list[tuple[int, int]]:
        """Threads and memory of the workers that have joined."""
        return [size for name, size in self.planned().items() if name in self.joined]

    def missing(self) -> tuple[set[str], set[str]]:
        """Participants that have not come, and workers that have not joined."""
        there = {peer.name for peer in self.connected(but=WORKER)}
        there |= {participant for peer in self._peers.values() for participant in peer.plan}
        return self._expected - there, self.planned().keys() - self.joined

    def node_of(self, name: str, expected: Mapping[int, str]) -> str | None:
        """Node of a participant: that where others of it are, or else the one where it is expected."""
        rank = wording.by_rank(name)
        return self._nodes.get(rank) or expected.get(rank)

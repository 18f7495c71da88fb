"""How the ranks meet: rank 0 publishes one `CoordinatorRecord`, all others wait for it with a deadline."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields

__all__ = ["CoordinatorRecord", "Rendezvous"]


@dataclass(frozen=True)
class CoordinatorRecord:
    """What a rank needs to find rank 0, to know it, and to prove that it belongs to the run itself.

    The run's private key is not in there: a file with the record may outlive a run that was killed. Rank 0 tells the key
    those who have proved that they belong to the run; once that is over, the secret is worth nothing.

    Parameters
    ----------
    run_id : str
        The run that the record belongs to.
    nonce : str
        Random, new for every run.
    node : str
        The node of rank 0, for messages.
    host, port : str, int
        Where rank 0's coordinator listens.
    secret : str
        Shared by the ranks of this run and nobody else; hexadecimal.
    certificate : str
        By which rank 0 is known, in PEM; empty where the user has turned security off.
    job : str
        What a person calls the job, such as "slurm job 4242.0".
    began : float
        When the run began, in seconds since the epoch.
    """

    run_id: str
    nonce: str
    node: str
    host: str
    port: int
    secret: str = field(repr=False)
    certificate: str = field(default="", repr=False)
    job: str = ""
    began: float = 0.0

    def to_json(self) -> str:
        """Write the record as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CoordinatorRecord:
        """Read a record.

        Raises
        ------
        ValueError
            If the text is not such a record, whole and of the right types.
        """
        data = json.loads(text)
        names = {entry.name for entry in fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            msg = "not a coordinator record"
            raise ValueError(msg)
        port, began = data.pop("port"), data.pop("began")
        numbers = isinstance(port, int) and isinstance(began, (int, float))
        if not numbers or not all(isinstance(value, str) for value in data.values()):
            msg = "not a coordinator record"
            raise ValueError(msg)
        return cls(port=port, began=began, **data)


class Rendezvous(ABC):
    """One way in which the ranks meet."""

    @property
    def place(self) -> str:
        """What two of them must have in common so that who is at the one meets who is at the other."""
        return type(self).__name__

    @abstractmethod
    def check(self) -> None:
        """Find out, on any rank and before anything starts, whether the meeting place can be used.

        Raises
        ------
        RendezvousError
            If it cannot.
        """

    @abstractmethod
    def publish(self, record: CoordinatorRecord) -> None:
        """Make the record known to the other ranks; rank 0 only.

        Raises
        ------
        RendezvousError
            If that is not possible.
        """

    @abstractmethod
    def wait(self, deadline: float) -> CoordinatorRecord:
        """Wait for the record of this run; all ranks but 0.

        Parameters
        ----------
        deadline : float
            In seconds of `time.monotonic`.

        Raises
        ------
        StartTimeoutError
            If no record that can be trusted was there by then.
        """

    def latest(self) -> CoordinatorRecord | None:
        """Look again for the record of this run: what was found may have been left behind by a predecessor."""
        return None

    def abandon(self, code: int) -> None:  # noqa: B027
        """Free ranks that may be waiting for this one inside the rendezvous; the last thing before a failed rank exits.

        Parameters
        ----------
        code : int
            The exit code.
        """

    @abstractmethod
    def withdraw(self, *, orphaned: bool = False) -> None:
        """Remove every trace of this rank: rank 0 when the run ends, any other if it gives up; twice does no harm.

        Parameters
        ----------
        orphaned : bool
            Rank 0 is dead: remove its record too.
        """

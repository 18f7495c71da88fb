"""Under ``python -m batchlet`` the run is the cluster that ``Client()`` means, and its own client the one of last resort.

That client is a default as any other, the oldest: whichever client the script makes later comes before it, as under plain
Dask, and when that is closed ``.compute()`` has the cluster all the same. It is never entered (``with Client(...)``): Dask
would then prefer it to all others in the main thread, and also on their event loops, where libraries wait for results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from .. import report
from . import dask_clients

__all__ = ["default_client"]

# Seconds for a cluster of the script's own to end, as Dask has them.
_PATIENCE = 10.0


class _JobCluster:
    """The run, as the cluster of one client: closing it closes it for that client, and the run goes on.

    What it does not have itself, the runner has.

    Parameters
    ----------
    runner : BatchletRunner
        The run.
    oldest : Client, optional
        Whose event loop the client shall share; an asynchronous one has the loop that it is made in.
    """

    def __init__(self, runner: Any, oldest: Any = None) -> None:
        self._runner = runner
        self._oldest = oldest
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        if name != "loop":
            return getattr(self.__dict__.get("_runner"), name)
        if self._oldest is None or self._oldest.status != "running":
            raise AttributeError(name)
        return self._oldest.loop

    @property
    def status(self) -> Any:
        """Dask's status of this cluster."""
        from distributed.core import Status

        return Status.closed if self._closed else self._runner.status

    def close(self, timeout: object = None) -> _JobCluster:  # noqa: ARG002 - as Dask's clusters have it
        """Have it closed, as ``client.shutdown()`` asks; can be awaited."""
        self._closed = True
        return self

    def __await__(self) -> Generator[Any, None, _JobCluster]:
        return self
        yield

    def __repr__(self) -> str:
        return repr(self._runner)


class _Arguments:
    """With which arguments the script's clients are made.

    Parameters
    ----------
    runner : BatchletRunner
        The run.
    address : str
        Its scheduler's.
    """

    def __init__(self, runner: Any, address: str) -> None:
        self._runner = runner
        self._address = address
        self._said: set[str] = set()
        #: The run's own client.
        self.oldest: Any = None

    def __call__(self, given: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
        """Make ``Client()`` one of the run, and say what else is different.

        Parameters
        ----------
        given : mapping of str to object
            As the script gives them.
        known : set of str
            Those of a client. What it does not know itself, it would pass on to a LocalCluster.
        """
        import dask.config
        from distributed import LocalCluster

        where = given.get("address")
        if isinstance(where, LocalCluster):
            self._say(
                f"{type(where).__name__}: stays on this node, and the run's {self._runner.n_workers} workers have nothing "
                "to do meanwhile; Client() without arguments is theirs"
            )
        elsewhere = dask.config.get("scheduler-address", None) != self._address
        if where is not None or given.get("scheduler_file") is not None or elsewhere:
            return dict(given)
        spare = [name for name, value in given.items() if name not in known or (name == "security" and value)]
        if spare:
            self._say(f"{', '.join(spare)}: without effect here, since this script runs inside `python -m batchlet`")
        kept = {name: value for name, value in given.items() if name in known - {"address", "security"}}
        oldest = None if given.get("asynchronous") else self.oldest
        return {"address": _JobCluster(self._runner, oldest), **kept}

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            report.note(text)


@contextlib.contextmanager
def default_client(runner: Any) -> Iterator[None]:
    """Make a run the cluster that ``Client()``, ``get_client()`` and ``.compute()`` find.

    Parameters
    ----------
    runner : BatchletRunner
        Entered.
    """
    import dask.config
    from distributed import Client, LocalCluster

    from ..dask_backend import tls
    from ..dask_backend.compat.dask_internals import altered_clients, living, quiet_if

    address = runner.scheduler_address
    tls.set_loaded(runner.security)
    # For a client that is made with the scheduler's address, and for whoever asks Dask's configuration for that.
    found = {
        "scheduler-address": address,
        "distributed.client.security-loader": f"{tls.__name__}.{tls.loader.__name__}",
    }
    arguments = _Arguments(runner, address)
    before = living(LocalCluster)
    try:
        with dask.config.set(found), altered_clients(arguments):
            arguments.oldest = oldest = Client(_JobCluster(runner))
            # What tasks print and warn, the script's own client shows.
            quiet_if(oldest, lambda: dask_clients.any_other(address, oldest))
            try:
                yield
            finally:
                oldest.close()
                for cluster in living(LocalCluster):
                    # As Dask itself does when the process ends; then the place where its workers spill is gone already.
                    if cluster not in before and cluster.shutdown_on_close and not cluster.asynchronous:
                        with contextlib.suppress(Exception):
                            cluster.close(timeout=_PATIENCE)
    finally:
        tls.set_loaded(None)

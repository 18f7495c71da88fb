"""A client that rank 0 knows only to be there: no thread, no event loop, and news when it wants them."""

from __future__ import annotations

import threading

import pytest

from batchlet.control.greeting import ProtocolError
from batchlet.control.presence import Presence
from batchlet.errors import ClusterLostError, PlanError
from batchlet.security import Credentials

from . import control_run
from .control_run import eventually, hello

pytestmark = pytest.mark.timeout(20)

new_run = control_run.new_run


@pytest.fixture(params=[True, False], ids=["with TLS", "in the clear"])
def run(request, new_run):
    return new_run(credentials=Credentials.generate() if request.param else None)


def presence(run, **other: object) -> Presence:
    return Presence(run.record(**other), hello("1", "client", "n0", [0, 1]), 0.0, lambda: None)


def test_it_hears_of_a_failure_when_it_asks_and_has_no_thread_of_its_own(run):
    before = threading.active_count()
    client = presence(run)
    assert threading.active_count() == before
    assert client.failure() is None
    run.coordinator.fail(PlanError("too much"))
    assert eventually(client.failure)
    assert (type(client.failure()), str(client.failure()), client.told) == (PlanError, "too much", True)
    client.close(farewell=False)


def test_an_end_without_a_word_is_a_lost_coordinator(new_run):
    run = new_run()
    client = presence(run)
    run.coordinator.close()
    assert eventually(client.failure)
    assert (type(client.failure()), client.told) == (ClusterLostError, False)
    client.close(farewell=True)


@pytest.mark.parametrize("farewell", [True, False])
def test_its_end_is_the_clients_but_where_that_has_come_again(new_run, farewell):
    run = new_run()
    client = presence(run)
    again = run.client()
    client.close(farewell=False)
    agent = run.worker("2")
    assert not eventually(lambda: agent.failure is not None or run.stopped.is_set(), 0.2)
    another = presence(run)
    again.close()
    assert not eventually(run.stopped.is_set, 0.2)
    agent.close()
    another.close(farewell=farewell)
    assert run.stopped.wait(5)
    # Its connections are closed, of which asyncio would warn otherwise.
    assert eventually(lambda: not run.coordinator._door._tasks)


def test_what_listens_there_and_is_not_of_this_run_gets_no_client(run):
    with pytest.raises((ProtocolError, OSError)):
        presence(run, secret="00" * 32)

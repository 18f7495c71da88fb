"""An agent that has died and may be replaced: its tasks go elsewhere at once, its workers come back, or are lost in the end."""

from __future__ import annotations

import pytest

from batchlet.control import events as e
from batchlet.control import messages as m
from batchlet.control.state import FAILED, IDLE, PAUSING, RUNNING, STARTING, STOPPING

from .test_control_state import FACTS, LAUNCH, STARTED, WELCOME, World, planned

SECONDS = 9
KILLED = "was killed (SIGKILL)"


def agent(world: World, name: str, brings: tuple[int, ...], node: str, seconds: int = SECONDS) -> int:
    ranks = tuple(map(str, brings))
    return world.enter(name, node=node, brings=ranks[:1], local_ranks=brings, replaceable_within=seconds)


def two_nodes(quorum: int | None = None, seconds: int = SECONDS) -> World:
    """Ranks 2 and 3 on node n1, rank 4 on n2; all workers have joined."""
    world = World("1 2 3 4", quorum=quorum)
    world.client()
    agent(world, "agent-2", (2, 3), "n1", seconds)
    agent(world, "agent-4", (4,), "n2", seconds)
    world.happened(e.FactsKnown(FACTS))
    world.says("agent-2", planned(2))
    world.says("agent-2", planned(3))
    world.says("agent-4", planned(4))
    world.running(2, 3, 4)
    assert world.state.phase == RUNNING
    return world


def successor(world: World, name: str = "agent-3", how: str = KILLED, seconds: int = SECONDS) -> int:
    """Another rank of n1 has started an agent."""
    peer = agent(world, name, (int(name.removeprefix("agent-")),), "n1", seconds)
    world.says(name, m.Replaces(how, ["agent-0", "agent-2", "agent-3"]))
    return peer


def notes(world: World) -> list[str]:
    return [action.text for action in world.actions if isinstance(action, e.NoteLoss)]


def test_a_dead_agents_workers_are_forgotten_at_once_and_told_of_when_another_one_has_brought_them_back():
    world = two_nodes()
    world.leave("agent-2")
    assert world.actions[-2:] == [
        e.TellScheduler(m.Forget(("2", "3"))),
        e.StartTimer("replacement 1", SECONDS, 1),
    ]
    peer = successor(world)
    assert [type(message) for message in world.told[peer]] == [m.Welcome, m.SchedulerStarted, m.Ready]
    for rank in (2, 3):
        assert notes(world) == []
        world.says("agent-3", planned(rank))
        world.own(m.WorkerJoined(str(rank)))
    said = [f"the host of the workers on node n1 {KILLED}; a new one has brought its 2 workers back"]
    assert notes(world) == said
    world.fire("replacement 1")
    world.says("1", m.Finish())
    assert (world.state.phase, notes(world)) == (STOPPING, said)


def test_who_has_lost_all_workers_waits_for_them_and_fails_if_they_do_not_come_back():
    world = two_nodes()
    for name in ("agent-2", "agent-4"):
        world.leave(name)
    assert (world.state.phase, notes(world)) == (RUNNING, [])
    world.fire("replacement 2")
    assert notes(world) == ["rank 4 on node n2 died and 1 worker with it; the run goes on with 2"]
    world.fire("replacement 1")
    [report] = world.done(e.Report)
    assert "the worker host of ranks 2, 3 on node n1 died and 2 workers with it; 0 workers left" in str(report.error)


def test_fewer_workers_than_wanted_are_enough_for_the_moment_but_not_for_good():
    world = two_nodes(quorum=3)
    world.leave("agent-2")
    assert world.state.phase == RUNNING
    world.fire("replacement 1")
    assert world.state.phase == FAILED


def test_an_agent_that_will_not_be_replaced_is_lost_at_once():
    world = two_nodes(seconds=0)
    world.leave("agent-2")
    assert notes(world) == [
        "the worker host of ranks 2, 3 on node n1 died and 2 workers with it; the run goes on with 1"
    ]


def test_each_death_is_one_line_also_where_the_next_agent_dies_before_it_has_brought_anything_back():
    world = two_nodes()
    world.leave("agent-2")
    successor(world)
    world.leave("agent-3")
    assert notes(world) == [
        f"the host of the workers on node n1 {KILLED}; the new one died before it had brought the workers back"
    ]
    successor(world, how="ended with exit code 1", seconds=0)
    for rank in (2, 3):
        world.says("agent-3", planned(rank))
        world.own(m.WorkerJoined(str(rank)))
    assert notes(world)[1:] == [
        "the host of the workers on node n1 ended with exit code 1; a new one has brought its 2 workers back"
    ]
    # There may be no other one.
    world.leave("agent-3")
    assert notes(world)[2:] == [
        "the worker host of ranks 2, 3 on node n1 died and 2 workers with it; the run goes on with 1"
    ]


def test_the_last_agent_that_dies_on_its_way_is_lost_with_all_that_it_was_to_bring_back():
    world = two_nodes()
    world.leave("agent-2")
    successor(world, seconds=0)
    world.says("agent-3", planned(3))
    world.leave("agent-3")
    assert notes(world) == [
        "the worker host of ranks 2, 3 on node n1 died and 2 workers with it; the run goes on with 1"
    ]


def test_what_a_new_agent_does_not_bring_back_is_lost_after_a_while():
    world = two_nodes()
    world.leave("agent-2")
    successor(world)
    world.says("agent-3", planned(3))
    world.own(m.WorkerJoined("3"))
    world.fire("replacement 1")
    assert notes(world) == [], "it is here, and its workers may take as long as at the start"
    world.fire("replacement 1")
    assert notes(world) == [
        f"the host of the workers on node n1 {KILLED}; a new one has brought its worker back",
        "rank 2 on node n1 died and 1 worker with it; the run goes on with 2",
    ]


def test_a_rank_that_dies_under_the_new_agent_is_not_waited_for():
    world = two_nodes()
    world.leave("agent-2")
    successor(world)
    world.says("agent-3", planned(3))
    world.says("agent-3", m.Gone("2"))
    world.own(m.WorkerJoined("3"))
    assert notes(world)[-1] == f"the host of the workers on node n1 {KILLED}; a new one has brought its worker back"


def test_a_new_agent_that_cannot_bring_its_workers_back_ends_alone():
    world = two_nodes()
    world.leave("agent-2")
    peer = successor(world)
    world.says("agent-3", m.ReportFailure("PlanError", "too large"))
    assert world.told[peer][-1] == m.Stop()
    assert world.state.phase == RUNNING
    assert notes(world) == [
        "the new host of the workers on node n1 cannot bring them back: too large",
        "the worker host of ranks 2, 3 on node n1 died and 2 workers with it; the run goes on with 1",
    ]


def test_at_the_start_the_cluster_is_complete_when_the_new_agent_has_brought_what_the_dead_one_was_to_bring():
    world = World("1 2 3")
    world.client()
    agent(world, "agent-2", (2, 3), "n1")
    world.happened(e.FactsKnown(FACTS))
    world.says("agent-2", planned(2))
    world.own(STARTED)
    world.leave("agent-2")
    assert world.state.phase == STARTING
    peer = successor(world, how="")
    assert world.told[peer] == [WELCOME, STARTED]
    for rank in (2, 3):
        world.says("agent-3", planned(rank))
    world.running(2, 3)
    assert world.state.phase == RUNNING
    # It had said nothing of rank 3 yet.
    assert notes(world) == ["the host of the workers on node n1 died; a new one has brought its worker back"]


def test_an_agent_in_the_place_of_one_that_nobody_has_heard_of_is_told_of_at_once():
    world = World("1 2 3")
    world.client()
    agent(world, "agent-3", (3,), "n1")
    world.says("agent-3", m.Replaces(KILLED, ["agent-2"]))
    assert notes(world) == [f"the host of the workers on node n1 {KILLED}; a new one has taken its place"]


@pytest.mark.parametrize("quorum", [None, 1])
def test_at_the_start_nobody_is_waited_for_longer_than_a_new_agent_takes(quorum):
    world = World("1 2 3", quorum=quorum)
    world.client()
    world.worker(3)
    agent(world, "agent-2", (2,), "n2")
    world.leave("agent-2")
    assert world.state.phase == STARTING
    world.fire("replacement 1")
    assert world.state.phase == (FAILED if quorum is None else STARTING)


def test_an_agent_that_dies_between_two_blocks_is_replaced_for_the_next_one():
    world = two_nodes()
    world.says("1", m.Done())
    world.says("agent-2", m.Paused())
    world.leave("agent-2")
    assert world.state.phase == PAUSING
    peer = successor(world)
    world.says("agent-4", m.Paused())
    assert world.state.phase == IDLE, "nobody waits for one that has no workers"
    assert notes(world) == [f"the host of the workers on node n1 {KILLED}; a new one has taken its place"]
    assert world.told[peer] == [], "the block is over"
    world.says("1", m.Begin(LAUNCH))
    world.happened(e.FactsKnown(FACTS))
    for name, rank in (("agent-3", 2), ("agent-3", 3), ("agent-4", 4)):
        world.says(name, planned(rank))
    world.running(2, 3, 4)
    assert world.state.phase == RUNNING


def test_a_new_agent_that_is_still_on_its_way_is_waited_for_in_the_next_block_too():
    world = two_nodes()
    world.leave("agent-2")
    world.says("1", m.Done())
    world.says("agent-4", m.Paused())
    world.says("1", m.Begin(LAUNCH))
    world.happened(e.FactsKnown(FACTS))
    world.says("agent-4", planned(4))
    world.running(4)
    world._fire("replacement 1", 1)
    assert world.state.phase == STARTING
    successor(world)
    for rank in (2, 3):
        world.says("agent-3", planned(rank))
        world.own(m.WorkerJoined(str(rank)))
    assert world.state.phase == RUNNING


@pytest.mark.parametrize("how", ["stop", "fail"])
def test_nothing_is_said_of_agents_once_the_run_is_over(how):
    world = two_nodes()
    world.leave("agent-2")
    world.says("1", m.Finish() if how == "stop" else m.ReportFailure("PlanError", "x"))
    peer = successor(world)
    assert isinstance(world.told[peer][-1], m.Stop if how == "stop" else m.Failed)
    world.leave("agent-3")
    world.fire_all()
    assert notes(world) == []

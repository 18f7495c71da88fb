"""What the coordinator decides, without sockets, threads or a clock; no order of events leaves anybody without an answer."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchlet.control import events as e
from batchlet.control import messages as m
from batchlet.control.events import Rules
from batchlet.control.state import FAILED, IDLE, PAUSING, RUNNING, STARTING, STOPPING, State
from batchlet.errors import ClusterLostError, NetworkError, PlanError, error_named

GIB = 1 << 30
VERSIONS = {"dask": "2026.8.0"}
STARTED = m.SchedulerStarted("tls://10.0.0.1:1", None)
FACTS = {"n1": [4 * GIB, "scontrol"]}
ANSWERS = (m.Stop, m.Failed, m.Closed)
LAUNCH = "options of the user"
WELCOME = m.Welcome(FACTS, LAUNCH)


def rules(participants: str = "1 2 3", quorum: int | None = None) -> Rules:
    return Rules(
        participants=participants.split(),
        start_timeout=20,
        patience=19,
        stop_timeout=3,
        grace=10,
        scheduler_timeout=60,
        quorum=lambda _: quorum,
    )


class World:
    """All that is around a state: who is connected and what they were told, the timers, and rank 0."""

    def __init__(self, participants: str = "1 2 3", quorum: int | None = None) -> None:
        self.state = State("n0", 4, VERSIONS, 3)
        self.rules = rules(participants, quorum)
        self.connected: dict[str, int] = {}
        self.told: dict[int, list[m.Message]] = {}
        self.numbers = 0
        self.timers: dict[tuple[str, int], float] = {}
        self.actions: list[e.Action] = []
        self.said_closed: set[int] = set()
        # What should be reported: the first cause that came while the run was not over.
        self.cause: tuple[str, str] | None = None
        self.happened(e.Began(self.rules, LAUNCH))

    def happened(self, event: e.Event) -> tuple[e.Action, ...]:
        before = self.state.phase
        cause = self.cause_in(event)
        actions = self.state.advance(event)
        if before not in (STOPPING, FAILED) and cause is not None:
            self.cause = self.cause or cause
        for action in actions:
            if isinstance(action, (e.Send, e.SayOver)):
                message = action.message if isinstance(action, e.Send) else m.BlockOver(action.timeline)
                for peer in action.peers:
                    assert peer in self.connected.values(), "nobody is told anything who is not there"
                    assert peer not in self.said_closed, "who has taken leave is told nothing"
                    self.told[peer].append(message)
            elif isinstance(action, e.StartTimer):
                assert action.seconds >= 0
                self.timers[action.name, action.block] = action.seconds
        self.actions += actions
        if any(isinstance(action, e.BeginBlock) for action in actions):
            # As rank 0 does, as soon as the scheduler of the block before is gone.
            self.happened(e.Began(self.rules, LAUNCH))
        assert not (before in (STOPPING, FAILED) and self.state.phase != before), "nothing changes the outcome"
        return actions

    @staticmethod
    def cause_in(event: e.Event) -> tuple[str, str] | None:
        if isinstance(event, e.Fail):
            return type(event.error).__name__, str(event.error)
        if isinstance(event, e.MessageCame) and isinstance(event.message, m.ReportFailure):
            return event.message.kind, event.message.message
        return None

    def enter(self, name: str, role: str = "worker", node: str = "n1", **more: object) -> int:
        self.numbers += 1
        self.connected[name] = self.numbers
        self.told[self.numbers] = []
        hello = m.Hello(name, role, node, versions=VERSIONS)
        self.happened(e.PeerEntered(self.numbers, replace(hello, **more)))
        return self.numbers

    def client(self) -> int:
        return self.enter("1", "client", "n0")

    def worker(self, rank: int, workers: int = 1) -> int:
        peer = self.enter(f"agent-{rank}", brings=(str(rank),), local_ranks=(rank,))
        self.says(f"agent-{rank}", planned(rank, workers))
        return peer

    def says(self, name: str, message: m.Message) -> tuple[e.Action, ...]:
        peer = self.connected.get(name)
        if peer is None or peer in self.said_closed:
            return ()
        if isinstance(message, m.Closed):
            self.said_closed.add(peer)
        return self.happened(e.MessageCame(peer, message))

    def leave(self, name: str) -> None:
        peer = self.connected.pop(name, None)
        if peer is not None:
            self.happened(e.PeerLeft(peer))

    def own(self, message: m.Message) -> tuple[e.Action, ...]:
        return self.happened(e.MessageCame(e.OWN, message))

    def fire(self, name: str) -> None:
        """Let the timer of a name fire that was set last."""
        for block in sorted((block for known, block in self.timers if known == name), reverse=True)[:1]:
            self._fire(name, block)

    def _fire(self, name: str, block: int) -> None:
        del self.timers[name, block]
        self.happened(e.DeadlinePassed({}, block) if name == "deadline" else e.TimerFired(name, block))

    def seconds(self, name: str) -> float:
        return next(seconds for (known, _), seconds in reversed(self.timers.items()) if known == name)

    def fire_all(self) -> None:
        """Let all the time pass that anybody waits for; a timer may start another one."""
        for _ in range(10):
            for name, block in list(self.timers):
                self._fire(name, block)
        assert self.timers == {}

    def running(self, *workers: int) -> None:
        self.own(STARTED)
        for rank in workers:
            self.own(m.WorkerJoined(str(rank)))

    def last(self, name: str) -> m.Message:
        return self.told[self.connected[name]][-1]

    def done(self, kind: type[e.Action]) -> list[e.Action]:
        return [action for action in self.actions if isinstance(action, kind)]


def planned(rank: int, workers: int = 1) -> m.Planned:
    return m.Planned(str(rank), [[str(rank) if n == 0 else f"{rank}-{n}", 2, GIB] for n in range(workers)])


def ready(quorum: int | None = None) -> World:
    world = World(quorum=quorum)
    world.client()
    world.worker(2)
    world.worker(3)
    world.happened(e.FactsKnown(FACTS))
    world.running(2, 3)
    assert world.state.phase == RUNNING
    return world


def guest(world: World, node: str = "n7", versions: dict[str, str] = VERSIONS) -> int:
    """A node of another job, under its own name: all those of a job have one name."""
    world.numbers += 1
    world.connected[node] = world.numbers
    world.told[world.numbers] = []
    world.happened(e.PeerEntered(world.numbers, m.Hello("job 9.0", "guest", node, versions=versions)))
    world.says(node, m.Planned(node, [[f"slurm-9.0-{node}", 4, GIB]]))
    return world.numbers


def waiting(ranks: int) -> World:
    """One whose client is still to come, and has not asked for any block."""
    world = World()
    world.state = State("n0", ranks, VERSIONS, 3)
    world.timers.clear()
    world.happened(e.Awaited(19))
    return world


# One thing at a time


def test_the_first_thing_is_the_deadline():
    assert World().actions == [e.StartTimer("deadline", 19, 1)]


def test_all_hear_of_the_facts_of_the_scheduler_and_when_the_cluster_is_ready():
    world = ready()
    for name in ("1", "agent-2", "agent-3"):
        assert world.told[world.connected[name]] == [
            WELCOME,
            STARTED,
            m.Ready(workers=2, threads=(2, 2), memory=(GIB, GIB), nodes=2),
        ]
    assert world.done(e.Met) == [e.Met()]
    assert world.done(e.Mark) == [e.Mark("all workers joined")]


def test_who_comes_late_hears_at_once_what_the_others_have_heard():
    world = World()
    world.happened(e.FactsKnown(FACTS))
    world.own(STARTED)
    assert world.told[world.client()] == [WELCOME, STARTED]


def test_a_question_is_answered():
    world = World()
    peer = world.client()
    assert world.says("1", m.Ping()) == (e.Send((peer,), m.Pong()),)


def test_the_end_in_good_order_workers_first_then_the_client_then_the_scheduler_then_rank_0():
    world = World("1 2")
    scheduler, client, worker = world.enter("scheduler", "scheduler", "n0"), world.client(), world.worker(2)
    world.says("scheduler", STARTED)
    world.says("scheduler", m.WorkerJoined("2"))
    assert world.state.phase == RUNNING
    assert world.says("1", m.Finish())[:2] == (e.Send((scheduler,), m.Stopping()), e.Send((client, worker), m.Stop()))
    # The report is brought to its end before the client may end.
    before = len(world.actions)
    world.leave("agent-2")
    assert world.actions[before : before + 2] == [e.Conclude(), e.Send((client,), m.Closed())]
    assert world.last("scheduler") == m.Stop()
    assert world.done(e.StopServing) == []
    world.leave("scheduler")
    assert world.done(e.StopServing) == [e.StopServing()]
    assert world.done(e.Report) == world.done(e.NoteLoss) == world.done(e.EndHard) == []


def test_a_scheduler_here_is_told_what_one_apart_is_told():
    world = ready(quorum=1)
    assert e.TellScheduler(m.Forget(("2",))) in world.says("agent-2", m.Gone("2"))
    assert e.TellScheduler(m.Stopping()) in world.says("1", m.Done())


def test_a_block_ends_when_all_agents_have_no_workers_any_more_and_another_one_is_like_the_first():
    world = World("1 2 3")
    client, two, three = world.client(), world.worker(2), world.worker(3)
    for block in (1, 2, 3):
        scheduler = world.enter("scheduler", "scheduler", "n0")
        world.happened(e.FactsKnown(FACTS))
        if block > 1:
            for rank in (2, 3):
                world.says(f"agent-{rank}", planned(rank))
        world.says("scheduler", STARTED)
        assert world.state.phase == STARTING
        world.says("scheduler", m.WorkerJoined("2"))
        world.says("scheduler", m.WorkerJoined("3"))
        assert world.state.phase == RUNNING
        world.says("agent-2", m.Timeline("workers of node n1", [["ready", float(block)]]))
        assert world.says("1", m.Done())[:2] == (e.Send((scheduler,), m.Stopping()), e.Send((two, three), m.Pause()))
        world.says("agent-2", m.Paused())
        assert world.state.phase == PAUSING
        world.says("agent-3", m.Paused())
        assert world.state.phase == IDLE
        assert world.told[client][-1] == m.BlockOver({"workers of node n1": [["ready", float(block)]]})
        assert len(world.done(e.EndBlock)) == block
        world.leave("scheduler")
        # What is left of the block is no news for the next one.
        world.says("agent-2", m.SchedulerDied("ended with exit code 0", block))
        if block < 3:
            world.says("1", m.Begin(LAUNCH))
            world.fire("pause")
            assert world.state.phase == STARTING
    world.leave("1")
    assert world.state.phase == STOPPING
    assert world.done(e.Report) == world.done(e.NoteLoss) == []
    assert {type(message) for message in world.told[two]} == {m.Welcome, m.SchedulerStarted, m.Ready, m.Pause, m.Stop}


def test_a_guest_hears_what_agents_hear_and_nobody_waits_for_its_workers():
    world = World()
    world.client()
    world.worker(2)
    world.worker(3)
    world.happened(e.FactsKnown(FACTS))
    peer = guest(world)
    world.running(2, 3)
    assert world.state.phase == RUNNING
    ready = m.Ready(workers=2, threads=(2, 2), memory=(GIB, GIB), nodes=2)
    assert world.told[peer] == [WELCOME, STARTED, ready]
    assert e.NoteLoss("job 9.0 joins with its workers") in world.actions
    # The scheduler stays until a guest's workers are gone, too.
    world.says("1", m.Done())
    for rank in (2, 3):
        world.says(f"agent-{rank}", m.Paused())
    assert (world.state.phase, world.last("n7")) == (PAUSING, m.Pause())
    world.says("n7", m.Paused())
    assert world.state.phase == IDLE
    world.leave("1")
    assert world.told[peer][-1] == m.Stop()


def test_the_end_of_a_block_waits_for_the_workers_of_guests_and_not_for_guests_that_have_none_yet():
    world = ready()
    guest(world, "n8")
    world.numbers += 1
    world.connected["n9"], world.told[world.numbers] = world.numbers, []
    world.happened(e.PeerEntered(world.numbers, m.Hello("job 9.0", "guest", "n9", versions=VERSIONS)))
    world.says("1", m.Done())
    for rank in (2, 3):
        world.says(f"agent-{rank}", m.Paused())
    assert world.last("n9") == m.Pause()
    assert world.state.phase == PAUSING, "n8 has workers"
    world.says("n8", m.Paused())
    assert world.state.phase == IDLE, "n9 has told of none"
    # What it says late does no harm, and in the next block it is one like any other.
    world.says("n9", m.Planned("n9", [["slurm-9.0-n9", 4, GIB]]))
    world.says("n9", m.Paused())
    world.says("1", m.Begin(LAUNCH))
    assert world.state.phase == STARTING


def test_guests_that_die_or_cannot_take_part_do_not_end_the_run_and_are_one_line():
    world = ready()
    for node in ("n7", "n8", "n9"):
        guest(world, node)
    world.leave("n7")
    assert world.actions[-2:] == [
        e.TellScheduler(m.Forget(("slurm-9.0-n7",))),
        e.NoteLoss("job 9.0, which had joined, is lost (on node n7); the run goes on without its workers"),
    ]
    world.leave("n8")
    world.says("n9", m.ReportFailure("PlanError", "too large"))
    world.says("n9", m.Closed())
    stranger = guest(world, "n6", versions={"dask": "2020.1.0"})
    assert isinstance(world.told[stranger][-1], m.Failed)
    assert world.state.phase == RUNNING
    assert len(world.done(e.NoteLoss)) == 2
    assert world.done(e.Report) == []


def visitor(world: World, called: str = "visitor-1", **more: object) -> int:
    return world.enter(called, "visitor", "login", **more)


def test_a_visitor_hears_where_the_scheduler_is_when_it_goes_and_the_end_and_nobody_waits_for_it():
    world = ready()
    seen = visitor(world)
    assert world.told[seen] == [m.Welcome({}, LAUNCH), STARTED]
    world.says("1", m.Done())
    assert world.told[seen][-1] == m.Pause()
    for rank in (2, 3):
        world.says(f"agent-{rank}", m.Paused())
    assert world.state.phase == IDLE, "without a word from the visitor"
    late = visitor(world, "visitor-2")
    assert world.told[late] == [m.Pause()], "the scheduler of the block before is gone"
    world.says("1", m.Begin(LAUNCH))
    assert world.told[visitor(world, "visitor-3")] == [m.Pause()]
    world.happened(e.FactsKnown(FACTS))
    world.own(STARTED)
    assert world.told[late] == [m.Pause(), WELCOME, STARTED]
    world.says("1", m.Finish())
    assert world.told[seen][-1] == world.told[late][-1] == m.Stop()
    for rank in (2, 3):
        world.leave(f"agent-{rank}")
    assert world.done(e.StopServing) == [e.StopServing()], "with three visitors still there"
    assert world.done(e.Report) == world.done(e.NoteLoss) == []


# Whatever anybody of the run may say.
def test_what_all_nodes_have_to_say_is_said_once():
    """With the name of the first one; something else is said too, and what is lost beside it."""
    world = ready()
    for text in ("no driver", "no driver", "no bindings"):
        world.says("agent-2", m.Told(text, once=1))
        world.says("agent-3", m.Told(text, once=1))
    world.says("agent-2", m.SocketTaken(1))
    said = [action.text for action in world.done(e.NoteLoss)]
    assert said[:2] == ["no driver (node n1)", "no bindings (node n1)"]
    assert len(said) == 3


ANYTHING = [
    m.Done(), m.Finish(), m.Begin(LAUNCH), m.Planned("2", [["2", 1, GIB]]), m.Gone("2"), m.Paused(), m.Stop(), STARTED,
    m.ReportFailure("PlanError", "x"), m.Signalled(15, "2"), m.SchedulerDied("ended", 1), m.WorkerJoined("2"), m.Beat(),
    m.SocketTaken(1), m.Timeline("x", []), m.Forget(("2",)), m.Pause(), m.Told("x"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["1", "client", "agent-2", "scheduler", "2"])
def test_nothing_that_a_visitor_says_calls_itself_or_does_has_any_effect(name):
    world = ready()
    # Under a name of somebody of the run, with that one's ranks.
    world.numbers += 1
    world.connected["impostor"], world.told[world.numbers] = world.numbers, []
    greeting = m.Hello(name, "visitor", "n1", (0, 1, 2), ("2", "9"), VERSIONS)
    world.happened(e.PeerEntered(world.numbers, greeting))
    before = len(world.actions)
    for message in ANYTHING:
        world.says("impostor", message)
    assert world.actions[before:] == []
    assert world.says("impostor", m.Ping()) == (e.Send((world.connected["impostor"],), m.Pong()),)
    world.leave("impostor")
    assert world.state.phase == RUNNING
    assert world.done(e.NoteLoss) == world.done(e.Report) == []
    # And the run ends as if it had never been there.
    world.says("1", m.Done())
    for rank in (2, 3):
        world.says(f"agent-{rank}", m.Paused())
    assert world.state.phase == IDLE


def test_a_visitor_with_other_versions_is_refused_by_itself_unless_it_only_looks_and_so_is_one_too_many():
    world = ready()
    refused = visitor(world, versions={"dask": "2020.1.0"})
    [answer] = world.told[refused]
    assert answer == m.Failed(
        "VersionMismatchError",
        "This process has dask 2020.1.0, the run has dask 2026.8.0: attach with the Python of the run.",
    )
    assert world.told[visitor(world, "looks", versions={})][-1] == STARTED
    many = [visitor(world, f"many-{number}") for number in range(70)]
    assert [type(world.told[peer][-1]) for peer in many].count(m.Failed) == 70 + 2 - 64
    assert world.state.phase == RUNNING


def test_a_failed_run_tells_its_visitors_and_does_not_wait_for_them():
    world = ready()
    seen = visitor(world)
    world.happened(e.Fail(NetworkError("x")))
    assert world.told[seen][-1] == m.Failed("NetworkError", "x")
    for name in ("1", "agent-2", "agent-3"):
        world.leave(name)
    assert world.done(e.StopServing) == [e.StopServing()]


def test_the_run_goes_on_with_the_workers_of_guests_and_fails_when_the_last_of_them_is_gone():
    world = ready()
    guest(world)
    world.leave("agent-2")
    world.leave("agent-3")
    assert world.state.phase == RUNNING
    world.leave("n7")
    assert world.state.phase == FAILED
    [report] = world.done(e.Report)
    assert isinstance(report.error, ClusterLostError)


def test_a_timer_of_a_block_that_is_over_does_nothing_in_the_next_one():
    world = ready()
    world.says("1", m.Done())
    for rank in (2, 3):
        world.says(f"agent-{rank}", m.Paused())
    world.says("1", m.Begin(LAUNCH))
    for timer in [timer for timer in world.timers if timer[1] == 1]:
        world._fire(*timer)
    assert world.state.phase == STARTING


def test_who_has_died_in_a_block_is_not_waited_for_in_the_next_one():
    world = ready()
    world.leave("agent-3")
    world.says("1", m.Done())
    world.says("agent-2", m.Paused())
    world.says("1", m.Begin(LAUNCH))
    world.happened(e.FactsKnown(FACTS))
    world.says("agent-2", planned(2))
    world.running(2)
    assert world.state.phase == RUNNING
    assert len(world.done(e.NoteLoss)) == 1


def test_an_agent_that_cannot_end_its_workers_holds_nobody_up():
    world = ready()
    world.says("1", m.Done())
    world.fire("pause")
    assert world.state.phase == IDLE
    assert isinstance(world.last("1"), m.BlockOver)


@pytest.mark.parametrize("quorum", [None, 1])
def test_who_dies_before_the_first_block_has_died_at_its_start(quorum):
    world = World(quorum=quorum)
    world.state = State("n0", 4, VERSIONS, 3)
    world.worker(2)
    world.leave("agent-2")
    assert world.state.phase == IDLE
    world.happened(e.Began(world.rules, LAUNCH))
    assert world.state.phase == (FAILED if quorum is None else STARTING)


def test_a_script_that_begins_no_block_ends_all_in_good_order():
    world = waiting(4)
    peer = world.enter("agent-2", brings=("2",), local_ranks=(2,))
    world.enter("1", "client", local_ranks=(1, 2, 3))
    world.fire("deadline")
    assert world.state.phase == IDLE, "the client is there, and may take its time"
    world.leave("1")
    assert world.told[peer] == [m.Stop()]
    world.leave("agent-2")
    assert world.done(e.StopServing) == [], "rank 3 is still on its way"
    assert world.told[world.enter("agent-3", brings=("3",), local_ranks=(3,))] == [m.Stop()]
    world.leave("agent-3")
    assert world.done(e.StopServing) == [e.StopServing()]
    assert world.done(e.Report) == []


def test_a_client_that_never_comes_is_named_with_the_ranks_whose_agents_have_not_come_either():
    world = waiting(5)
    world.enter("agent-2", brings=("2",), local_ranks=(1, 2, 3))
    world.fire("deadline")
    [report] = world.done(e.Report)
    assert report.error.exit_code == 80
    assert (
        "after 19 s (start_timeout): rank 1 on node n1, rank 4 on a node that nobody came from did not arrive"
        in str(report.error)
    )


def test_a_client_that_was_there_before_its_first_block_comes_once_more_for_it_and_is_not_lost():
    world = waiting(4)
    before = world.client()
    world.happened(e.MessageCame(world.client(), m.Begin(LAUNCH)))
    world.happened(e.PeerLeft(before))
    assert world.state.phase == STARTING
    world.worker(2)
    world.worker(3)
    world.running(2, 3)
    assert world.state.phase == RUNNING
    world.leave("1")
    assert world.state.phase == STOPPING


def test_a_signal_between_two_blocks_ends_the_run():
    world = ready()
    world.says("1", m.Done())
    for rank in (2, 3):
        world.says(f"agent-{rank}", m.Paused())
    world.says("agent-2", m.Signalled(signal.SIGTERM, "2"))
    [report] = world.done(e.Report)
    assert report.error.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize("stuck", ["worker", "scheduler"])
def test_who_does_not_leave_holds_up_the_end_until_its_timer_fires(stuck):
    world = ready()
    scheduler = world.enter("scheduler", "scheduler", "n0")
    world.says("1", m.Finish())
    assert world.seconds("stop") == 3
    if stuck == "worker":
        world.fire("stop")
    else:
        world.leave("agent-2")
        world.leave("agent-3")
    assert world.told[scheduler][-1] == m.Stop()
    assert isinstance(world.last("1"), m.Closed)
    world.fire("stuck")
    assert world.done(e.EndHard) == [e.EndHard()]


def test_a_failure_is_told_to_those_who_come_within_a_moment():
    world = World()
    world.client()
    world.happened(e.Fail(PlanError("nothing fits")))
    world.leave("1")
    assert world.done(e.StopServing) == [], "ranks 2 and 3 have not heard"
    assert world.told[world.enter("agent-2", brings=("2",))] == [m.Failed("PlanError", "nothing fits")]
    world.leave("agent-2")
    world.fire("linger")
    assert world.done(e.StopServing) == [e.StopServing()]


def test_nobody_is_waited_for_who_has_died():
    world = World("1 2")
    world.client()
    world.worker(2)
    world.leave("agent-2")
    assert world.state.phase == FAILED
    world.leave("1")
    assert world.done(e.StopServing) == [e.StopServing()]


def test_after_the_deadline_nobody_is_waited_for():
    world = World()
    world.client()
    world.fire("deadline")
    world.leave("1")
    assert world.done(e.StopServing) == [e.StopServing()]


def test_a_worker_that_has_taken_leave_is_not_lost():
    world = ready()
    world.says("agent-2", m.Closed())
    world.leave("agent-2")
    assert world.state.phase == RUNNING
    assert world.done(e.NoteLoss) == []


def test_a_cluster_without_workers_is_a_failure():
    world = World("1 2")
    world.client()
    world.worker(2, workers=0)
    world.own(STARTED)
    [report] = world.done(e.Report)
    assert str(report.error) == "No rank is left that hosts workers."


@pytest.mark.parametrize("quorum", [1, 2])
def test_at_the_deadline_enough_workers_are_not_enough_without_the_client(quorum):
    world = World(quorum=quorum)
    world.worker(2)
    world.worker(3)
    world.running(2, 3)
    world.fire("deadline")
    assert world.state.phase == FAILED


def test_the_record_is_kept_for_those_who_are_late():
    world = World(quorum=1)
    world.client()
    world.worker(2)
    world.running(2)
    world.fire("deadline")
    assert world.state.phase == RUNNING
    assert world.done(e.Met) == []
    world.worker(3)
    assert world.done(e.Met) == [e.Met()]


def test_the_node_of_a_rank_that_nobody_has_seen_is_the_launcher_s():
    world = World("1 2 9")
    world.client()
    world.happened(e.DeadlinePassed({9: "n7"}, 1))
    [report] = world.done(e.Report)
    assert "rank 2 on a node that nobody came from, rank 9 on node n7 did not arrive" in str(report.error)


def test_silence_is_the_time_that_passes_without_a_sign_of_life():
    world = ready()
    world.happened(e.TimePassed(1000))
    assert world.state.phase == RUNNING, "there was no first sign of life"
    for _ in range(3):
        world.own(m.Beat())
        for _ in range(60):
            world.happened(e.TimePassed(1))
        assert world.state.phase == RUNNING
    world.happened(e.TimePassed(1))
    world.happened(e.TimePassed(1))
    assert world.state.phase == FAILED


def test_a_lost_scheduler_waits_a_moment_for_who_knows_how_it_ended():
    world = ready()
    world.happened(e.SchedulerGone())
    assert (world.state.phase, world.seconds("obituary")) == (RUNNING, 1.0)
    world.says("agent-2", m.SchedulerDied("was killed by SIGKILL"))
    world.fire("obituary")
    [report] = world.done(e.Report)
    assert str(report.error) == "The scheduler, a process of rank 0 on node n0, was killed by SIGKILL."


def test_a_client_that_does_not_heed_a_signal_is_ended_after_its_grace():
    world = ready()
    world.happened(e.LocalSignal(signal.SIGTERM, "rank 0 on node n0"))
    world.happened(e.LocalSignal(signal.SIGINT, "rank 0 on node n0"))
    assert world.last("1") == m.Terminate(signal.SIGTERM, "rank 0 on node n0")
    assert world.seconds("grace") == 13
    world.fire("grace")
    [report] = world.done(e.Report)
    assert report.error.exit_code == 128 + signal.SIGTERM


def test_a_client_that_comes_after_the_signal_hears_of_it():
    world = World()
    world.client()
    world.happened(e.LocalSignal(signal.SIGTERM, "rank 0 on node n0"))
    assert world.told[world.enter("client", "client", "login")] == [m.Terminate(signal.SIGTERM, "rank 0 on node n0")]


# All orders of everything

RANKS = (2, 3)
NAMES = ("1", "scheduler", *(f"agent-{rank}" for rank in RANKS))
TIMERS = ("deadline", "grace", "obituary", "pause", "linger", "stop", "stuck")


def enter(name: str, versions: dict[str, str] = VERSIONS):
    def step(world: World) -> None:
        if name in world.connected:
            return
        role = {"1": "client", "scheduler": "scheduler"}.get(name, "worker")
        brings = (name.removeprefix("agent-"),) if role == "worker" else ()
        world.enter(name, role, versions=versions, brings=brings)

    return step


STEPS = {
    **{f"{name} enters": enter(name) for name in NAMES},
    "agent-3 enters with other versions": enter("agent-3", {"dask": "2025.1.0"}),
    **{f"{name} dies": lambda world, name=name: world.leave(name) for name in NAMES},
    **{f"{name} takes leave": lambda world, name=name: world.says(name, m.Closed()) for name in NAMES},
    **{
        f"agent-{rank} plans {workers}": lambda world, rank=rank, workers=workers: world.says(
            f"agent-{rank}", planned(rank, workers)
        )
        for rank in RANKS
        for workers in (0, 1)
    },
    **{
        f"rank {rank} is gone": lambda world, rank=rank: world.says(f"agent-{rank}", m.Gone(str(rank)))
        for rank in RANKS
    },
    **{
        f"{name} reports": lambda world, name=name: world.says(name, m.ReportFailure("PlanError", f"by {name}"))
        for name in NAMES
    },
    **{
        f"{name} is signalled": lambda world, name=name: world.says(name, m.Signalled(signal.SIGTERM, name))
        for name in NAMES[1:]
    },
    **{f"worker {rank} joins": lambda world, rank=rank: world.own(m.WorkerJoined(str(rank))) for rank in RANKS},
    **{
        f"worker {rank} joins apart": lambda world, rank=rank: world.says("scheduler", m.WorkerJoined(str(rank)))
        for rank in RANKS
    },
    "the scheduler starts": lambda world: world.own(STARTED),
    "the scheduler apart starts": lambda world: world.says("scheduler", STARTED),
    "the scheduler beats": lambda world: world.own(m.Beat()),
    "the scheduler died": lambda world: world.says("agent-2", m.SchedulerDied("was killed")),
    "the scheduler is gone": lambda world: world.happened(e.SchedulerGone()),
    "time passes": lambda world: world.happened(e.TimePassed(61)),
    "the facts": lambda world: world.happened(e.FactsKnown(FACTS)),
    "rank 0 is signalled": lambda world: world.happened(e.LocalSignal(signal.SIGINT, "rank 0 on node n0")),
    "rank 0 fails": lambda world: world.happened(e.Fail(NetworkError("no network"))),
    "the client is done": lambda world: world.says("1", m.Done()),
    "the client begins": lambda world: world.says("1", m.Begin(LAUNCH)),
    "the client finishes": lambda world: world.says("1", m.Finish()),
    **{f"agent-{rank} pauses": lambda world, rank=rank: world.says(f"agent-{rank}", m.Paused()) for rank in RANKS},
    "a guest enters": lambda world: "n7" in world.connected or guest(world),
    "a guest dies": lambda world: world.leave("n7"),
    "a guest takes leave": lambda world: world.says("n7", m.Closed()),
    "a guest pauses": lambda world: world.says("n7", m.Paused()),
    "a question": lambda world: world.says("agent-2", m.Ping()),
    **{f"timer {name}": lambda world, name=name: world.fire(name) for name in TIMERS},
}
# The way of a run in which nothing happens, so that what is mixed in happens at every stage of it.
USUAL = (
    "1 enters", "agent-2 enters", "the facts", "agent-3 enters", "agent-2 plans 1", "agent-3 plans 1", "the scheduler starts",
    "the scheduler beats", "worker 2 joins", "worker 3 joins", "time passes", "the scheduler beats", "the client is done",
    "agent-2 pauses", "agent-3 pauses", "the client begins", "the facts", "agent-2 plans 1", "agent-3 plans 1",
    "the scheduler starts", "worker 2 joins", "worker 3 joins", "the client is done", "agent-3 pauses", "agent-2 pauses",
    "the client finishes", "agent-2 takes leave", "agent-2 dies", "agent-3 takes leave", "agent-3 dies", "1 takes leave",
    "1 dies",
)  # fmt: skip


@st.composite
def stories(draw: st.DrawFn) -> list[str]:
    """Those of an ordinary run up to some point, less some of them, and any others in between."""
    anything = st.lists(st.sampled_from(sorted(STEPS)), max_size=25)
    left_out = draw(st.sets(st.sampled_from(USUAL), max_size=3))
    usual = [step for step in USUAL[: draw(st.integers(0, len(USUAL)))] if step not in left_out]
    for step in draw(anything):
        usual.insert(draw(st.integers(0, len(usual))), step)
    return usual


def outcome(world: World) -> None:
    """What holds at the end, when every timer has fired that there was."""
    reports = world.done(e.Report)
    failures = {message for told in world.told.values() for message in told if isinstance(message, m.Failed)}
    assert len(reports) == (world.state.phase == FAILED)
    assert failures <= {m.Failed.of(report.error) for report in reports}, "all hear the same root cause"
    if world.cause is not None:
        assert m.Failed.of(reports[0].error) == m.Failed(*world.cause), "the first one"
        assert type(reports[0].error) is type(error_named(*world.cause))
    for kind in (e.Met, e.StopServing, e.EndHard):
        assert len(world.done(kind)) <= 1
    over = world.state.phase in (STOPPING, FAILED)
    assert bool(world.done(e.StopServing) or world.done(e.EndHard)) == over
    client = world.connected.get("1")
    assert over or (client is not None and client not in world.said_closed), "a run without a client ends"
    if not over:
        return
    for peer in set(world.connected.values()) - world.said_closed:
        assert any(isinstance(message, ANSWERS) for message in world.told[peer]), f"{peer} waits"


@settings(max_examples=400)
@given(story=stories(), quorum=st.sampled_from([None, 1, 2]))
def test_no_order_of_events_leaves_anybody_without_an_answer_and_the_first_cause_wins(story, quorum):
    world = World(quorum=quorum)
    for step in story:
        STEPS[step](world)
    world.fire_all()
    outcome(world)


def test_the_usual_way_is_one_without_failures():
    world = World()
    for step in USUAL:
        STEPS[step](world)
    assert world.state.phase == STOPPING
    assert world.done(e.Report) == world.done(e.NoteLoss) == []
    assert [type(action) for action in world.actions if isinstance(action, (e.Met, e.SayOver, e.StopServing))] == [
        e.Met,
        e.SayOver,
        e.SayOver,
        e.StopServing,
    ]


@pytest.mark.parametrize("step", sorted(STEPS))
def test_at_every_stage_of_a_run_anything_may_happen(step):
    """The same claim as above, for each event at each place of an ordinary run that goes on or stops there."""
    for at in range(len(USUAL) + 1):
        for rest in (USUAL[at:], ()):
            world = World()
            for name in (*USUAL[:at], step, *rest):
                STEPS[name](world)
            world.fire_all()
            outcome(world)


def test_a_fault_of_the_state_itself_would_be_a_failure_of_the_run():
    """Guarded by the coordinator, which has the state fail with whatever it raises."""
    world = ready()
    with pytest.raises(ValueError, match="unpack"):
        world.says("agent-2", m.Planned("2", [[]]))
    world.happened(e.Fail(ClusterLostError("that")))
    assert isinstance(world.last("1"), m.Failed)

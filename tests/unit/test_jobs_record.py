"""What becomes of jobs, and what is done about it."""

from __future__ import annotations

import itertools
import time

import pytest

from batchlet.jobs.lifetime import JoinTimes, Lifetime
from batchlet.jobs.record import Ask, Drop, GiveUp, JobBook, Replace, Retire, Succeed, Tell


def book(**options) -> JobBook:
    found = JobBook(**{"max_restarts": 3, "start_timeout": 10.0, **options})
    for number in range(2):
        found.asked(f"c-{number}", 1, now=100.0)
        assert list(found.submitted(f"c-{number}", str(number))) == [Ask()]
    return found


def test_a_job_goes_from_submitted_to_joined_and_to_ended():
    jobs = book()
    job = jobs.records["c-0"]
    seen = [job.state]
    list(jobs.seen("0", "pending", "Priority"))
    seen.append(str(job))
    jobs.came("c-0", "n1")
    seen.append(str(job))
    jobs.serves("c-0", "n1", 101.0)
    seen.append(job.state)
    assert [job.job_id for job in jobs.unexplained] == ["1"]
    # Later, when it ends; but not until it has been there for a while.
    assert list(jobs.time_passed(105.0)) == []
    assert list(jobs.time_passed(107.0)) == [Ask()]
    assert [job.job_id for job in jobs.unexplained] == ["0", "1"]
    jobs.ends("c-0", 3600.0)
    assert [job.job_id for job in jobs.unexplained] == ["1"]
    jobs.closes("c-0")
    assert list(jobs.went("c-0", "n1", 101.0)) == []
    seen.append(job.state)
    assert seen == ["submitted", "job 0: pending (Priority)", "job 0: running on n1", "joined", "ended"]


def test_a_job_of_two_nodes_has_joined_when_both_have():
    jobs = JobBook(3, 10.0)
    jobs.asked("c-0", 2, now=0.0)
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1", 101.0)
    jobs.came("c-0", "n2")
    assert jobs.records["c-0"].state == "running"
    jobs.serves("c-0", "n2", 101.0)
    assert jobs.records["c-0"].state == "joined"


def test_a_lost_job_is_named_with_the_systems_words_and_replaced():
    jobs = book()
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1", 101.0)
    assert list(jobs.went("c-0", "n1", 120.0)) == [Ask()]
    assert list(jobs.time_passed(121.0)) == []
    drop, replace = jobs.seen("0", "failed", "OUT_OF_MEMORY", "exit code 1")
    assert drop == Drop("c-0", "job 0 is lost: OUT_OF_MEMORY, exit code 1")
    assert replace == Replace()
    assert list(jobs.seen("0", "failed", "OUT_OF_MEMORY")) == []


def test_a_job_that_was_requeued_waits_again_and_is_not_lost():
    jobs = book()
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1", 130.0)
    list(jobs.went("c-0", "n1", 120.0))
    assert list(jobs.seen("0", "pending", "BeginTime")) == [
        Tell("job 0 waits again, as the batch system has requeued it: BeginTime")
    ]
    assert not [action for action in jobs.time_passed(200.0) if "job 0" in getattr(action, "text", "")]
    jobs.came("c-0", "n2")
    jobs.serves("c-0", "n2", 130.0)
    assert str(jobs.records["c-0"]) == "job 0: joined on n2"
    # Or it has done so before anybody has asked.
    jobs.ends("c-0", 3600.0)
    list(jobs.went("c-0", "n2", 300.0))
    jobs.came("c-0", "n1")
    # It has a new time limit.
    assert jobs.records["c-0"].limit is None
    jobs.serves("c-0", "n1", 130.0)
    assert not [action for action in jobs.time_passed(400.0) if "job 0" in getattr(action, "text", "")]


def test_a_job_of_which_nobody_knows_what_has_become_is_lost_after_a_while():
    jobs = book()
    jobs.came("c-0", "n1")
    list(jobs.went("c-0", "n1", 120.0))
    actions = [action for action in jobs.time_passed(151.0) if isinstance(action, Drop)]
    assert actions[0].text == "job 0 is lost: its agent is gone, and the batch system does not say why"


def test_after_three_equal_failures_in_a_row_nothing_is_submitted_anew():
    jobs = JobBook(10, 10.0)
    for number in range(4):
        jobs.asked(f"c-{number}", 1, now=0.0)
    kinds = [
        [type(action) for action in jobs.failed(f"c-{number}", f"n{number}", f"no disk on n{number}")]
        for number in range(4)
    ]
    assert kinds == [[Drop, Replace], [Drop, Replace], [Drop, GiveUp], [Drop]]
    assert jobs.gave_up == "3 jobs in a row were lost in the same way"
    jobs.fresh()
    assert jobs.gave_up is None


@pytest.mark.parametrize("comes_up", [False, True])
def test_so_many_lost_jobs_are_replaced_before_one_has_come_up(comes_up):
    jobs = JobBook(2, 10.0)
    for number in range(4):
        name = f"c-{number}"
        jobs.asked(name, 1, now=0.0)
        if comes_up:
            jobs.came(name, "n1")
            jobs.serves(name, "n1", 1.0)
        actions = list(jobs.failed(name, "n1", "abcd"[number]))
        last = isinstance(actions[-1], GiveUp)
        assert last == (number == 2 and not comes_up)
        if last:
            break


def test_those_that_wait_are_told_once_in_one_line_with_the_reasons():
    jobs = book()
    for number, reason in enumerate(("Resources", "Priority")):
        list(jobs.seen(str(number), "pending", reason))
    assert list(jobs.time_passed(105.0)) == []
    text = "2 jobs have been waiting for 11 s (start_timeout): Priority, Resources"
    assert list(jobs.time_passed(111.0)) == [Tell(text)]
    assert list(jobs.time_passed(200.0)) == []


def test_those_that_wait_go_first_and_the_newest_of_them_before_the_others():
    jobs = book()
    jobs.asked("c-2", 1, now=200.0)
    jobs.came("c-1", "n1")
    assert jobs.by_use(["c-0", "c-1", "c-2"]) == ["c-2", "c-0", "c-1"]


def test_what_the_cluster_does_not_want_any_more_is_no_loss():
    jobs = book()
    jobs.closes("c-0")
    assert list(jobs.seen("0", "failed", "CANCELLED")) == []
    assert list(jobs.failed("c-0", "n1", "x")) == []
    assert jobs.records["c-0"].state == "ended"


def test_jobs_that_are_refused_together_are_told_in_one_line():
    jobs = JobBook(10, 10.0)
    for number in range(3):
        jobs.asked(f"c-{number}", 1, now=0.0)
    actions = list(jobs.not_submitted(["c-0", "c-1", "c-2"], "no quota"))
    assert [action.text for action in actions if isinstance(action, Drop)] == [
        "3 jobs were not submitted: no quota",
        "",
        "",
    ]


def joined(**options) -> JobBook:
    """A job that was handed in at 100, joined at 110 and is ended by the system at 1110."""
    jobs = JobBook(3, 10.0, **options)
    jobs.asked("c-0", 1, now=90.0)
    list(jobs.submitted("c-0", "7", 100.0))
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1", 110.0)
    jobs.ends("c-0", 1110.0)
    return jobs


def moments(jobs: JobBook, until: int) -> list[tuple[int, object]]:
    """Let time pass, with a job that retires when it is told to; when what followed."""
    found = []
    for now in range(110, until):
        for action in jobs.time_passed(float(now)):
            found.append((now, action))
            if isinstance(action, Retire):
                assert jobs.retires(action.name)
    return found


def test_a_job_is_succeeded_in_time_and_retires_before_its_end():
    jobs = joined()
    # A tenth of its 1,000 s; a job was seen to take 10 s to join; the agents have 5 s to end.
    assert moments(jobs, 1110) == [(1000, Succeed("c-0")), (1010, Retire("c-0", 1105.0))]
    assert jobs.records["c-0"].state == "retiring"
    assert list(jobs.went("c-0", "n1", 1060.0)) == [Ask()]
    # Another one is there for it already.
    assert [type(action) for action in jobs.seen("7", "failed", "NODE_FAIL")] == [Drop]


def test_the_user_may_say_when_jobs_are_over():
    jobs = joined(lifetime=Lifetime(retire_before=20.0, job_lifetime=100.0))
    # It may take as long again, if the batch system lets it.
    assert moments(jobs, 300) == [(180, Succeed("c-0")), (190, Retire("c-0", 305.0))]
    jobs = joined(lifetime=Lifetime(retire_before=20.0, job_lifetime=950.0))
    assert moments(jobs, 1100)[1] == (1040, Retire("c-0", 1105.0))
    endless = JobBook(3, 10.0)
    endless.asked("c-0", 1, now=0.0)
    endless.came("c-0", "n1")
    endless.serves("c-0", "n1", 1.0)
    # Nobody knows of an end, also not the system, which is asked.
    assert moments(endless, 10_000) == [(110, Ask())]


def test_nothing_succeeds_a_job_when_no_jobs_are_submitted_any_more_and_it_retires_all_the_same():
    jobs = joined()
    jobs.gave_up = "three were lost"
    assert [type(action) for _, action in moments(jobs, 1110)] == [Retire]


@pytest.mark.parametrize("length", [2.0, 20.0, 120.0, 3600.0, 1e6])
@pytest.mark.parametrize("before", [None, 5.0, 1e5])
def test_each_job_has_time_to_work_and_to_retire_and_they_are_spread(length, before):
    plans = [Lifetime(before).schedule(1000.0, 1000.0 + length, number, 60.0) for number in range(20)]
    for plan in plans:
        assert plan is not None
        assert 1000 + length / 5 <= plan.succeed <= plan.retire < plan.stop < 1000 + length
        assert plan.retire >= 1000 + 2 * length / 5
        assert plan.retire - plan.succeed <= 60
    moments = sorted(plan.retire for plan in plans if plan is not None)
    assert max(after - before for before, after in itertools.pairwise(moments)) < (moments[-1] - moments[0]) / 5


def test_the_time_to_join_is_the_longest_of_late_with_a_floor():
    times = JoinTimes()
    assert times.lead == 5.0
    for seconds in (600.0, *[3.0] * 7):
        times.add(seconds)
    assert times.lead == 600.0
    times.add(30.0)
    assert times.lead == 30.0


def test_two_thousand_jobs_are_kept_without_looking_through_all_of_them_for_each():
    jobs = JobBook(3, 1e9)
    names = [f"c-{number}" for number in range(2000)]
    began = time.process_time()
    for number, name in enumerate(names):
        jobs.asked(name, 1, now=0.0)
        list(jobs.submitted(name, f"42_{number}", 0.0))
    for number, name in enumerate(names):
        list(jobs.seen(f"42_{number}", "pending", "Priority"))
        jobs.came(name, "n1")
        jobs.serves(name, "n1", 1.0)
        jobs.ends(name, 1e6)
    list(jobs.time_passed(2.0))
    assert (len(jobs.active), jobs.queued, jobs.unexplained) == (2000, 0, [])
    # 2,000 times 2,000 looks would take longer.
    assert time.process_time() - began < 0.5

"""What becomes of jobs, and what is done about it."""

from __future__ import annotations

import pytest

from batchlet.jobs.record import Ask, Drop, GiveUp, JobBook, Replace, Tell


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
    jobs.serves("c-0", "n1")
    seen.append(job.state)
    assert [job.job_id for job in jobs.unexplained] == ["1"]
    jobs.closes("c-0")
    assert list(jobs.went("c-0", "n1", 101.0)) == []
    seen.append(job.state)
    assert seen == ["submitted", "job 0: pending (Priority)", "job 0: running on n1", "joined", "ended"]


def test_a_job_of_two_nodes_has_joined_when_both_have():
    jobs = JobBook(3, 10.0)
    jobs.asked("c-0", 2, now=0.0)
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1")
    jobs.came("c-0", "n2")
    assert jobs.records["c-0"].state == "running"
    jobs.serves("c-0", "n2")
    assert jobs.records["c-0"].state == "joined"


def test_a_lost_job_is_named_with_the_systems_words_and_replaced():
    jobs = book()
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1")
    assert list(jobs.went("c-0", "n1", 120.0)) == [Ask()]
    assert list(jobs.time_passed(121.0)) == []
    drop, replace = jobs.seen("0", "failed", "OUT_OF_MEMORY", "exit code 1")
    assert drop == Drop("c-0", "job 0 is lost: OUT_OF_MEMORY, exit code 1")
    assert replace == Replace()
    assert list(jobs.seen("0", "failed", "OUT_OF_MEMORY")) == []


def test_a_job_that_was_requeued_waits_again_and_is_not_lost():
    jobs = book()
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1")
    list(jobs.went("c-0", "n1", 120.0))
    assert list(jobs.seen("0", "pending", "BeginTime")) == [
        Tell("job 0 waits again, as the batch system has requeued it: BeginTime")
    ]
    assert not [action for action in jobs.time_passed(200.0) if "job 0" in getattr(action, "text", "")]
    jobs.came("c-0", "n2")
    jobs.serves("c-0", "n2")
    assert str(jobs.records["c-0"]) == "job 0: joined on n2"
    # Or it has done so before anybody has asked.
    list(jobs.went("c-0", "n2", 300.0))
    jobs.came("c-0", "n1")
    jobs.serves("c-0", "n1")
    assert not [action for action in jobs.time_passed(400.0) if "job 0" in getattr(action, "text", "")]


def test_a_job_of_which_nobody_knows_what_has_become_is_lost_after_a_while():
    jobs = book()
    jobs.came("c-0", "n1")
    list(jobs.went("c-0", "n1", 120.0))
    actions = [action for action in jobs.time_passed(150.0) if isinstance(action, Drop)]
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
            jobs.serves(name, "n1")
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

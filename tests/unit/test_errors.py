"""Errors: their tree, their exit codes, and what happens to a process that does not catch them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from batchlet import errors

CODES = {
    "EndError": 1,
    "BatchletError": 1,
    "InputError": 2,
    "SettingsError": 2,
    "LauncherError": 2,
    "PlanError": 2,
    "NetworkError": 2,
    "UsageError": 2,
    "RendezvousError": 2,
    "RefusedError": 2,
    "StartTimeoutError": 80,
    "ClusterLostError": 81,
    "ClientLostError": 82,
    "VersionMismatchError": 83,
    "TimeIsUpError": 84,
    "TerminatedError": 128 + signal.SIGTERM,
    "InterruptedRunError": 128 + signal.SIGINT,
}
CLASSES = {name: getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}


def test_every_error_has_its_documented_exit_code():
    assert {name: cls("x").code for name, cls in CLASSES.items()} == CODES


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    drawn = re.findall(r"^    ([ \u2500-\u257f]*)(\w+Error)(?: +(\d+)\b(?! \+))?", errors.__doc__, re.MULTILINE)
    assert {name for _, name, _ in drawn} == set(CODES)
    assert {name: int(code) for _, name, code in drawn if code} == {
        name: CODES[name] for _, name, code in drawn if code
    }
    parents: dict[int, str] = {}
    for indent, name, _ in drawn:
        parents[len(indent)] = name
        above = max((column for column in parents if column < len(indent)), default=None)
        assert issubclass(CLASSES[name], CLASSES[parents[above]] if above is not None else SystemExit)


@pytest.mark.parametrize("cls", CLASSES.values())
def test_an_error_is_caught_like_any_other_exception_and_a_signal_like_ctrl_c(cls):
    with pytest.raises(BaseException, match="what was found") as caught:
        raise cls("what was found")
    error = caught.value
    assert isinstance(error, errors.EndError)
    assert (
        isinstance(error, Exception)
        == isinstance(error, errors.BatchletError)
        == (cls not in (errors.EndError, errors.TimeIsUpError) and error.exit_code < 128)
    )
    assert str(error) == "what was found"


@pytest.mark.parametrize("name", ["BatchletError", "PlanError", "ClientLostError", "InterruptedRunError"])
def test_an_error_that_nobody_catches_ends_the_process_with_its_code_and_without_a_traceback(name):
    script = f"from batchlet.errors import {name}; raise {name}('said elsewhere')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (CODES[name], "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [name for name, code in CODES.items() if code < 128 and name != "EndError"])
def test_an_error_survives_the_way_to_another_rank(name):
    error = errors.error_named(name, "rank 3 said so")
    assert (type(error).__name__, str(error), error.code) == (name, "rank 3 said so", CODES[name])


@pytest.mark.parametrize("name", ["NoSuchError", "error_named", "annotations", "__doc__", "ClassVar", ""])
def test_a_name_that_is_no_error_becomes_the_base_class(name):
    error = errors.error_named(name, "message")
    assert type(error) is errors.BatchletError
    assert str(error) == "message"


def test_only_what_all_ranks_are_sure_to_see_is_said_by_one_of_them():
    assert {name for name, cls in CLASSES.items() if cls.same_on_every_rank} == {
        "SettingsError",
        "LauncherError",
        "UsageError",
        "RendezvousError",
        # A signal for the job goes to all ranks.
        "TerminatedError",
        "InterruptedRunError",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_rank_with_128_plus_its_number_also_when_another_rank_got_it(number):
    error = errors.terminated(number, "rank 3 on node n2")
    assert error.code == error.exit_code == 128 + number
    assert str(error) == f"{number.name} ended the run; it was sent to rank 3 on node n2."
    there = errors.error_named(type(error).__name__, str(error))
    assert (type(there), str(there), there.code) == (type(error), str(error), error.code)
    assert isinstance(error, KeyboardInterrupt) == (number == signal.SIGINT)

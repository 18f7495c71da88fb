"""`python -m batchlet` alone: a script, a module or code runs as with python, with a cluster beside it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from run_helpers import Place, Result, without_runpy

OURS = "batchlet: "

SHOWS = """
import sys

def deep(how):
    if how == "error":
        raise ValueError("of the user")
    if how == "cause":
        try:
            {}["key"]
        except KeyError as error:
            raise RuntimeError("a cause") from error
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "nothing":
        return
    sys.exit(int(how) if how.isdigit() else how)

print(__name__, __file__, __spec__ is None or __spec__.name, sys.argv, sys.modules["__main__"].deep is deep)
deep(sys.argv[1])
"""


def batchlet(place: Place, *args: str, **how: object) -> Result:
    return place.run(sys.executable, "-m", "batchlet", "--workers-per-node=1", *args, **how)  # type: ignore[arg-type]


def of_the_script(result: Result) -> list[str]:
    """What is on stderr without Batchlet's lines, and without the frames of Python's own `-m`."""
    return without_runpy([line for line in result.errors if not line.startswith(OURS)])


def assert_same(place: Place, *args: str) -> None:
    """The command does the same with python and with Batchlet, but for Batchlet's two lines."""
    plain = place.run(sys.executable, *args)
    result = batchlet(place, *args)
    # A process that SIGINT ends is 130 for a shell.
    assert result.rc == (130 if plain.rc == -signal.SIGINT else plain.rc), f"{plain}\n{result}"
    assert result.stdout == plain.stdout, f"{plain}\n{result}"
    assert of_the_script(result) == of_the_script(plain), f"{plain}\n{result}"
    assert len([line for line in result.errors if line.startswith(OURS)]) == 2, str(result)


@pytest.mark.parametrize("how", ["nothing", "0", "3", "a last word", "error", "cause", "interrupt"])
def test_a_script_has_all_that_python_would_give_it(place: Place, how: str) -> None:
    """A script has python's exit code, `__name__`, `__file__`, arguments and traceback."""
    assert_same(place, place.script(SHOWS), how, "--workers-per-node", "-m", "x")


def test_a_script_by_relative_path_has_the_file_and_traceback_of_python(place: Place) -> None:
    """A script that is named relative to the working directory has the `__file__` and the traceback of python, too."""
    folder = place.base / "cwd"
    (folder / "shows.py").write_text(SHOWS)
    assert_same(place, "shows.py", "error")


def test_a_syntax_error_is_shown_as_by_python(place: Place) -> None:
    """A syntax error is shown as by python."""
    assert_same(place, place.script("x = 1\nif x\n"))


def test_a_module_runs_as_with_python(place: Place) -> None:
    """`-m module` runs as with python."""
    (place.cwd / "shows.py").write_text(SHOWS)
    assert_same(place, "-m", "shows", "3", "-c")
    assert_same(place, "-m", "shows", "error")


def test_code_runs_as_with_python(place: Place) -> None:
    """`-c code` runs as with python."""
    assert_same(place, "-c", "import sys; print(sys.argv, __name__); sys.exit(3)", "-m", "--plan")
    assert_same(place, "-c", "def deep():\n    raise ValueError('of the user')\ndeep()")


def test_modules_are_found_where_python_finds_them(place: Place) -> None:
    """`sys.path` is that of python: first beside the script, and the working directory is not searched."""
    script = place.script("import sys\nprint(*sys.path, sep='\\n')\n")
    plain, result = place.run(sys.executable, script), batchlet(place, script)
    # Dask adds the scratch directory of its scheduler.
    found = [line for line in result.stdout.splitlines() if "/dask-scratch-space" not in line]
    assert found == plain.stdout.splitlines()


UNMODIFIED = """
import sys, threading
import beside
from dask.distributed import Client
import dask.bag

class Thing:
    def __init__(self, value):
        self.value = value

def thing(value):
    return Thing(value + 1)

print("top")
bag = dask.bag.from_sequence(range(4), npartitions=2)
print("without a client", bag.map(beside.double).sum().compute(), beside.place())
client = Client()
print("with a client", client.submit(thing, 1).result().value, len(client.nthreads()))
print("same", Client().scheduler.address == client.scheduler.address)
"""


def test_an_unmodified_script_uses_the_cluster_and_runs_once(place: Place) -> None:
    """Without a change and without a main guard `.compute()` and `Client()` use the cluster; the script runs once."""
    beside = """
        import os, threading
        def double(number):
            return 2 * number + 0 * len(threading.enumerate())
        def place():
            return "here"
        """
    (place.base / "beside.py").write_text(textwrap.dedent(beside))
    result = batchlet(place, place.script(UNMODIFIED))
    assert result.rc == 0, str(result)
    assert result.stdout == "top\nwithout a client 12 here\nwith a client 2 1\nsame True\n", str(result)
    assert len(result.errors) == 2, str(result)


def test_a_runner_inside_is_the_run_that_is_there(place: Place) -> None:
    """A `BatchletRunner()` in the script is the run that is there; options that come too late are said to."""
    script = """
        from batchlet import BatchletRunner
        from dask.distributed import Client
        with BatchletRunner(workers_per_node=5) as runner, Client(runner) as client:
            print(runner.mode, runner.n_workers, len(runner.plan.workers), client.submit(sum, [1, 2]).result())
        print(Client().submit(sum, [1, 2]).result())
        """
    result = batchlet(place, place.script(textwrap.dedent(script)))
    assert (result.rc, result.stdout) == (0, "local 1 1 3\n3\n"), str(result)
    assert len(result.errors) == 3, str(result)
    assert result.errors[1].startswith("batchlet: workers_per_node: without effect here"), str(result)


@pytest.mark.parametrize("form", [["--workers-per-node=2"], ["--workers-per-node", "2"]])
def test_a_flag_in_either_form_wins_over_its_variable(place: Place, form: list[str]) -> None:
    """An option is a flag, in both forms, and wins over its variable."""
    code = "from dask.distributed import Client; print(len(Client().nthreads()))"
    command = [sys.executable, "-m", "batchlet", *form, "-c", code]
    result = place.run(*command, env={"BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "1"})
    assert (result.rc, result.stdout) == (0, "2\n"), str(result)


REFUSED = {
    "missing script": (["no_such_script.py"], "There is no script 'no_such_script.py'"),
    "unknown flag": (["--no-such-option=1", "app.py"], "--no-such-option"),
    "flag cut short": (["--workers=1", "app.py"], "--workers"),
    "nothing to run": ([], "-m module"),
    "-m without a module": (["-m"], "-m"),
    "flag without a value": (["--workers-per-node"], "--workers-per-node"),
    "value": (["--workers-per-node=none", "-c", "pass"], "workers_per_node='none'"),
    "value with --plan": (["--plan", "--memory-headroom-frac=2"], "memory_headroom_frac='2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_on_the_command_line_is_one_sentence_and_exit_code_2(place: Place, case: str) -> None:
    """A mistake on the command line is one sentence that names it, with exit code 2; nothing is started."""
    args, fragment = REFUSED[case]
    result = place.run(sys.executable, "-m", "batchlet", *args)
    assert (result.rc, result.stdout) == (2, ""), str(result)
    assert "Traceback" not in result.stderr, str(result)
    errors = [line for line in result.errors if "error: " in line]
    assert len(errors) == 1, str(result)
    assert fragment in errors[0], str(result)
    assert len(result.errors) <= 2, str(result)
    assert result.seconds < 10, str(result)


def test_help_and_version_answer_on_stdout(place: Place) -> None:
    """`--help` and `--version` answer on stdout; the command `batchlet` is the same program."""
    by_module = place.run(sys.executable, "-m", "batchlet", "--help")
    assert (by_module.rc, by_module.stderr) == (0, "")
    assert "usage: python -m batchlet [options] (script.py | -m module | -c code) [arguments]" in by_module.stdout
    assert "--workers-per-node" in by_module.stdout
    by_name = place.run("batchlet", "--version")
    assert (by_name.rc, by_name.stdout, by_name.stderr) == (0, "batchlet 0.1.0\n", "")


def test_the_command_batchlet_runs_a_script(place: Place) -> None:
    """The command `batchlet script.py` runs it, with a module beside it."""
    (place.base / "beside.py").write_text("value = 42\n")
    result = place.run("batchlet", "--workers-per-node=1", place.script("import beside\nprint(beside.value)\n"))
    assert (result.rc, result.stdout) == (0, "42\n"), str(result)


def test_ctrl_c_ends_the_script_through_its_finally_with_130(place: Place) -> None:
    """Ctrl-C ends the script through its `finally`, where the cluster still works, with exit code 130."""
    script = place.script(
        "import time\nfrom dask.distributed import Client\nclient = Client()\ntry:\n    print('ready', flush=True)\n"
        "    time.sleep(60)\nfinally:\n    print('last', client.submit(sum, [1, 2]).result(), flush=True)\n"
    )
    command = [sys.executable, "-m", "batchlet", "--workers-per-node=1", script]
    process = subprocess.Popen(
        command, cwd=place.cwd, env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 130, stderr
    assert stdout == "last 3\n", stderr
    assert time.monotonic() - began < 15
    assert "/batchlet/" not in stderr, stderr
    place.assert_nothing_left()


def test_plan_starts_nothing_and_says_the_mode(place: Place) -> None:
    """`--plan` starts nothing, says the mode, and `--plan --json` is one document of the same workers."""
    text = place.run(sys.executable, "-m", "batchlet", "--plan", "--workers-per-node=2")
    assert text.rc == 0, str(text)
    assert text.errors == []
    assert text.stdout.startswith("mode local: no launcher was found\n")
    found = json.loads(place.run(sys.executable, "-m", "batchlet", "--plan", "--json", "--workers-per-node=2").stdout)
    assert found["mode"] == "local"
    assert [worker["name"] for worker in found["nodes"][0]["workers"]] == [0, 1]
    assert text.stdout.count("  worker ") == 2
    assert list(place.tmp.iterdir()) == []
    assert list(place.cwd.iterdir()) == []

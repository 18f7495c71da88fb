"""The command line: every option is a flag, from one definition, and `--plan` shows what the plan says."""

from __future__ import annotations

import json
import socket
from dataclasses import fields

import pytest

import batchlet
from batchlet import cli
from batchlet.command_line import make_parser, parse, split
from batchlet.program import Program
from batchlet.settings import Settings

OPTIONS = [option.name for option in fields(Settings) if option.metadata]


def test_every_option_is_a_flag_and_there_are_no_others():
    flags = {flag for action in make_parser({})._actions for flag in action.option_strings}
    assert flags == {"--" + name.replace("_", "-") for name in OPTIONS} | {
        "-h", "--help", "--version", "--plan", "--json"
    }  # fmt: skip


def test_help_describes_every_option_in_the_words_of_the_settings(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in fields(Settings):
        if option.metadata:
            assert "--" + option.name.replace("_", "-") in text
            assert " ".join(option.metadata["help"].split()) in text
    for words in ("srun -n 12 python -m batchlet script.py", "BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE", "--plan"):
        assert words in text


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"batchlet {batchlet.__version__}\n"


@pytest.mark.parametrize(
    ("line", "options", "program"),
    [
        ("app.py", "", Program("script", "app.py")),
        ("app.py --plan -m x", "", Program("script", "app.py", ("--plan", "-m", "x"))),
        ("--grace 3 app.py a", "--grace 3", Program("script", "app.py", ("a",))),
        ("--grace=3 app.py", "--grace=3", Program("script", "app.py")),
        ("--timeline app.py false", "--timeline", Program("script", "app.py", ("false",))),
        ("--timeline -m app", "--timeline", Program("module", "app")),
        ("--security false app.py", "--security false", Program("script", "app.py")),
        ("--share-node --grace 3 app.py", "--share-node --grace 3", Program("script", "app.py")),
        ("--colocate auto app.py", "--colocate auto", Program("script", "app.py")),
        ("-m app -c x", "", Program("module", "app", ("-c", "x"))),
        ("-c pass --plan", "", Program("code", "pass", ("--plan",))),
        ("--plan --grace 3", "--plan --grace 3", None),
        ("--plan app.py", "--plan", Program("script", "app.py")),
        ("--grace 3 -m", "--grace 3 -m", None),
        ("", "", None),
        ("--plan --json", "--plan --json", None),
    ],
)
def test_options_end_where_the_program_begins(line, options, program):
    assert split(line.split()) == (options.split(), program)


@pytest.mark.parametrize(
    ("line", "options", "program"),
    [
        ("app.py", {}, ("script", "app.py")),
        (
            "--grace=3 --workers-per-node=2 app.py --grace 4",
            {"grace": "3", "workers_per_node": "2"},
            ("script", "app.py"),
        ),
        ("--timeline=true -m app x", {"timeline": "true"}, ("module", "app")),
        ("--timeline app.py", {"timeline": "true"}, ("script", "app.py")),
        ("--grace 3 app.py", {"grace": "3"}, ("script", "app.py")),
        ("--interface= -c pass", {"interface": ""}, ("code", "pass")),
        ("--scheduler-options={'a':'b=c'} app.py", {"scheduler_options": "{'a':'b=c'}"}, ("script", "app.py")),
        ("--grace=3 --grace=4 app.py", {"grace": "4"}, ("script", "app.py")),
    ],
)
def test_a_line_is_read_by_the_agent_of_a_node_as_by_the_rank_that_runs_the_program(line, options, program):
    found = parse(line.split(), {})
    assert found.program is not None
    assert (found.options, (found.program.kind, found.program.target)) == (options, program)


@pytest.mark.parametrize("line", ["-m", "--grace=3", "", "--no-such-option app.py"])
def test_a_line_that_says_nothing_to_run_is_refused_by_one_of_the_ranks(line, capsys):
    with pytest.raises(SystemExit) as end:
        parse(line.split(), {})
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err
    other = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "0"}
    with pytest.raises(SystemExit) as end:
        parse(line.split(), other)
    assert end.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_switch_alone_is_on():
    given = vars(make_parser({}).parse_args(["--timeline", "--security", "false", "--share-node"]))
    assert {name: value for name, value in given.items() if isinstance(value, str)} == {
        "timeline": "true",
        "security": "false",
        "share_node": "true",
    }


@pytest.mark.parametrize(
    "arguments", [[], ["--no-such-option=1", "app.py"], ["--workers=1", "app.py"], ["--grace"], ["-m"]]
)
def test_a_line_that_cannot_be_is_refused_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1


def test_a_script_that_is_missing_is_refused_before_anything_is_started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(batchlet.InputError) as end:
        cli.main(["missing.py"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"batchlet: error: There is no script 'missing.py' in {tmp_path}.\n")
    assert list(tmp_path.iterdir()) == []


def test_plan_gives_every_figure_and_worker_of_the_plan(capsys):
    options = ["--workers-per-node=2", "--memory-headroom-frac=0.5"]
    assert cli.main(["--plan", *options]) == 0
    text = capsys.readouterr().out
    plan = batchlet.BatchletRunner(workers_per_node=2, memory_headroom_frac=0.5).plan
    assert text.startswith("mode local: no launcher was found\n1 process: ")
    assert f"node {socket.gethostname().split('.')[0]}\n" in text
    # Who asked for it is said otherwise only for flags and keywords, which are the same thing.
    assert plan.node_text() in text
    assert text.endswith(
        "asked for\n"
        "  workers_per_node              2  workers_per_node=\n"
        "  memory_headroom_frac        0.5  memory_headroom_frac=\n"
    )


def test_plan_names_the_variable_that_asked(monkeypatch, capsys):
    monkeypatch.setenv("BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE", "2")
    assert cli.main(["--plan"]) == 0
    assert capsys.readouterr().out.endswith(
        "asked for\n  workers_per_node              2  BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE\n"
    )


def test_plan_as_json_is_the_plan(capsys):
    assert cli.main(["--plan", "--json", "--workers-per-node=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = batchlet.BatchletRunner(workers_per_node=2).plan
    assert (found["mode"], found["ranks"], found["reason"]) == ("local", 1, "no launcher was found")
    assert found["nodes"] == [json.loads(json.dumps(plan.to_dict()))]
    assert found["settings"]["workers_per_node"] == {"value": 2, "source": "workers_per_node="}
    assert set(found["settings"]) == set(OPTIONS)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("workers", [1000, 1_000_000])
def test_plan_that_cannot_be_is_refused_with_2_at_once(workers, capsys):
    assert cli.main(["--plan", f"--workers-per-node={workers}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"batchlet: error: {workers} workers need {workers} threads on node ")
    assert len(err.splitlines()) == 1

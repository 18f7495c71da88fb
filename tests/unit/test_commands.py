"""Words in place of a script: one table, of which the help, the entry point and `main` are made."""

from __future__ import annotations

import importlib
import inspect

import pytest

from batchlet import cli
from batchlet.commands import COMMANDS, find_command


@pytest.mark.parametrize("word", COMMANDS)
def test_a_command_is_in_the_help_and_has_help_of_its_own(word, capsys):
    for arguments in ["--help"], [word, "--help"]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert f"python -m batchlet {word}" in capsys.readouterr().out
    module, _, about = COMMANDS[word]
    assert len(f"  python -m batchlet {word:<20} {about}") < 110
    assert list(inspect.signature(importlib.import_module(f"batchlet.{module}").main).parameters) == ["arguments"]


def test_only_the_first_word_is_a_command():
    assert find_command(["join", "x"]) == "join"
    for arguments in [], ["--plan", "join"], ["./join"], ["join.py"], ["-m", "join"]:
        assert find_command(arguments) is None


def test_a_script_that_is_called_like_a_command_is_told_of(tmp_path, monkeypatch, capsys):
    (tmp_path / "join").write_text("print(1)")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["join", "no-such-run"]) != 0
    assert (
        "`join` is Batchlet's command; the script of that name in this directory is ./join" in capsys.readouterr().err
    )

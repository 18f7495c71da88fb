"""A program runs as `python` would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import without_runpy

from batchlet.errors import UsageError
from batchlet.program import Program

# Runs a program in a process of its own and shows what it raises as `python -m batchlet` does.
RUN = """
import sys
from batchlet.program import Program, show_exception
try:
    program = Program(sys.argv[1], sys.argv[2], tuple(sys.argv[3:]))
    program.prepare()
    program.run()
except Exception as error:
    # Without the frame of this very program.
    show_exception(error.with_traceback(error.__traceback__.tb_next))
    sys.exit(1)
"""


def by_batchlet(cwd: Path, kind: str, target: str, *arguments: str) -> tuple[int, str, str]:
    return _run(cwd, "-c", RUN, kind, target, *arguments)


def by_python(cwd: Path, *arguments: str) -> tuple[int, str, str]:
    rc, out, err = _run(cwd, *arguments)
    return rc, out, "".join(without_runpy(err.splitlines(keepends=True)))


def _run(cwd: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


SHOWS = """
import sys
note: int = 1
class Thing: pass
print(__name__, sys.argv, __doc__, __package__, Thing.__module__)
print(sys.modules["__main__"].__dict__ is globals(), sys.path[0])
"""


@pytest.fixture
def shows(tmp_path: Path) -> Path:
    path = tmp_path / "shows.py"
    path.write_text(SHOWS)
    return path


def test_a_script_sees_what_python_would_show_it(shows):
    assert by_batchlet(shows.parent, "script", str(shows), "a", "-b") == by_python(shows.parent, str(shows), "a", "-b")


def test_the_docstring_of_a_script_is_its_own(tmp_path):
    (tmp_path / "doc.py").write_text('"""What I do."""\nprint(__doc__)\n')
    assert by_batchlet(tmp_path, "script", "doc.py") == (0, "What I do.\n", "")


@pytest.mark.parametrize("name", ["__file__", "__cached__", "__spec__", "__builtins__"])
def test_the_names_of_the_main_module_are_those_of_python(tmp_path, name):
    (tmp_path / "names.py").write_text(f"print({name})\n")
    assert by_batchlet(tmp_path, "script", "names.py") == by_python(tmp_path, "names.py")


def test_code_sees_what_python_would_show_it(tmp_path):
    assert by_batchlet(tmp_path, "code", SHOWS, "a", "-c") == by_python(tmp_path, "-c", SHOWS, "a", "-c")


def test_a_module_sees_what_python_would_show_it(shows):
    mine, pythons = by_batchlet(shows.parent, "module", "shows", "a"), by_python(shows.parent, "-m", "shows", "a")
    assert mine == pythons


def test_a_package_runs_its_main_module(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text(
        "import sys\nfrom . import other\nprint(sys.argv[1:], other.name)\n"
    )
    (tmp_path / "package" / "other.py").write_text("name = __name__\n")
    assert by_batchlet(tmp_path, "module", "package", "x") == (0, "['x'] package.other\n", "")


def test_a_directory_runs_its_main_module(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(
        "import sys, beside\nprint(__name__, sys.argv[1:], beside.value)\n"
    )
    (tmp_path / "folder" / "beside.py").write_text("value = 42\n")
    assert by_batchlet(tmp_path, "script", "folder", "x") == by_python(tmp_path, "folder", "x")


RAISES = "def deep():\n    raise ValueError('of the user')\n\ndeep()\n"


@pytest.mark.parametrize("source", [RAISES, "if x\n", "import no_such_module\n", "x = 'ä'\n1 / 0\n"])
def test_a_traceback_has_only_the_frames_of_the_script(tmp_path, source):
    path = tmp_path / "raises.py"
    path.write_text(source)
    assert by_batchlet(tmp_path, "script", str(path)) == by_python(tmp_path, str(path))
    assert by_batchlet(tmp_path, "module", "raises") == by_python(tmp_path, "-m", "raises")
    assert by_batchlet(tmp_path, "code", source) == by_python(tmp_path, "-c", source)


def test_a_script_in_another_encoding_is_read_as_python_reads_it(tmp_path):
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nprint(len('ä'))\n".encode("latin-1"))
    assert by_batchlet(tmp_path, "script", str(tmp_path / "latin.py")) == (0, "1\n", "")


def test_a_script_does_not_inherit_what_the_future_means_to_us(tmp_path):
    (tmp_path / "annotated.py").write_text("def f(x: int): ...\nprint(f.__annotations__)\n")
    assert by_batchlet(tmp_path, "script", "annotated.py") == (0, "{'x': <class 'int'>}\n", "")


def test_the_exit_code_of_a_program_comes_out(tmp_path):
    assert by_batchlet(tmp_path, "code", "raise SystemExit(3)")[0] == 3
    assert by_batchlet(tmp_path, "code", "raise SystemExit('a last word')") == (1, "", "a last word\n")


def test_functions_of_the_script_can_be_pickled_by_reference(tmp_path):
    source = "import pickle\ndef f(): return 42\nprint(pickle.loads(pickle.dumps(f))())\n"
    (tmp_path / "pickles.py").write_text(source)
    assert by_batchlet(tmp_path, "script", "pickles.py") == (0, "42\n", "")


def test_a_script_that_is_missing_is_named_with_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"There is no script 'missing\.py' in ") as error:
        Program("script", "missing.py").check()
    assert str(tmp_path) in str(error.value)
    assert error.value.exit_code == 2


def test_a_script_that_is_there_and_other_kinds_pass(shows):
    Program("script", str(shows)).check()
    Program("script", str(shows.parent)).check()
    Program("module", "no.such.file").check()
    Program("code", "pass").check()

"""The README is true: its table of options, its exit codes, its commands."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
from pathlib import Path

import pytest

from batchlet import errors

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "slurm_examples/**/*", "batchlet/**/*.py", "pyproject.toml", "tests/run")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix not in (".pyc", ".out") and ".ruff_cache" not in path.parts
)


def pages():
    spec = importlib.util.spec_from_file_location("update_pages", ROOT / "docs" / "update_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md"])
def test_what_is_made_from_the_code_is_up_to_date(name):
    made = pages()
    for content in made.PAGES[name].values():
        assert content() in (ROOT / name).read_text()
    assert made.page(name) == (ROOT / name).read_text(), "run docs/update_pages.py"


def test_every_module_and_name_that_the_architecture_points_to_exists():
    text = (ROOT / "docs" / "architecture.md").read_text().split("<!-- flux -->")[0]
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py): ([A-Za-z_.]+)`", text)
    assert len(named) > 10
    for file, name in named:
        source = (ROOT / "batchlet" / file).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(?:def|async def|class) {part}\b|^{part}\b", source, re.M), (file, name)


def readme_codes() -> set[str]:
    section = README.split("## Exit codes\n")[1].split("\n## ")[0]
    return {row.split("|")[1].strip() for row in section.splitlines() if re.match(r"\| *\d", row)}


def test_every_exit_code_is_documented_and_is_in_errors():
    # 1 is the base classes' own, never raised; 82 is what the ranks see whose code is not the job's.
    hidden = {errors.EndError, errors.BatchletError, errors.ClientLostError}
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.EndError)}
    codes = {cls.exit_code for cls in classes - hidden}
    plain = {code for code in codes if code < 128}
    assert readme_codes() == {str(code) for code in plain} | {"128 + n"}
    assert {code for code in codes if code > 128} == {143, 130}
    section = README.split("## Exit codes\n")[1].split("\n## ")[0]
    assert "143 SIGTERM" in section
    assert "130 Ctrl-C" in section


def test_every_error_that_the_readme_names_exists_with_that_code():
    section = README.split("## Exit codes\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| (\d+)(?: \+ n)? \|.*`(\w+Error)` in the script", section, re.M)
    assert named
    for code, name in named:
        assert getattr(errors, name).exit_code in ((143,) if code == "128" else (int(code),))


def commands() -> list[str]:
    section = README.split("## Two commands\n")[1].split("\n## ")[0]
    return [block.strip() for block in re.findall(r"```bash\n(.*?)```", section, re.S)]


def test_there_are_two_commands_and_what_they_run_exists():
    example, tests = commands()
    assert tests == "tests/run"
    assert os.access(ROOT / tests, os.X_OK)
    assert ".venv/bin/python slurm_examples/flight_delays.py" in example
    assert (ROOT / "slurm_examples" / "flight_delays.py").is_file()
    assert '".[examples]"' in example
    assert re.search(r"^examples = \[", (ROOT / "pyproject.toml").read_text(), re.M)


@pytest.mark.parametrize(
    "target",
    sorted({*re.findall(r"\]\(([^)#:]+)\)", README), "tests/slurm/cluster", "slurm_examples/flight_delays.sbatch"}),
)
def test_what_the_readme_points_to_exists(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_is_told_to_install_another_distribution(path):
    # On PyPI `batchlet` may be anybody's; ours is called dask-batchlet.
    assert not re.search(r"pip install (-\S+ |--\S+ )*[\"']?batchlet\b", path.read_text())


def test_the_flags_and_variables_of_the_readme_exist():
    from batchlet.command_line import make_parser
    from batchlet.settings import PREFIX, Settings

    flags = {flag for action in make_parser({})._actions for flag in action.option_strings}
    told = set(re.findall(r"python -m batchlet((?: --[\w-]+(?:[ =][\d.]+)?)+)", README))
    for text in told:
        assert set(re.findall(r"--[\w-]+", text)) <= flags
    for name in re.findall(rf"{PREFIX}([A-Z_]+)", README):
        assert hasattr(Settings, name.lower()) or name.lower() in Settings.__dataclass_fields__

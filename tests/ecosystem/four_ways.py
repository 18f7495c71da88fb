"""What people use does under Batchlet what it does under plain Dask: same exit code, same output, no other warning.

Each program in programs/ is written as its libraries' documentation has it, with `Client()` and without a word of Batchlet. It
runs with plain Dask, and by `python -m batchlet` under `srun` on two nodes; some run by that alone, too, and with a
`BatchletRunner` in the place of their `Client()` on two nodes. No program uses a network: the nodes of the test Slurm have no
route out.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from run_helpers import Place, Result

PROGRAMS = Path(__file__).parent / "programs"

OURS = "batchlet: "
# Each worker has as many of these as the tasks of `together` ask for, however it is started.
ENVIRON = {
    "DASK_DISTRIBUTED__WORKER__RESOURCES__SEATS": "2",
    # Plain Dask lets tasks start processes only so.
    "DASK_DISTRIBUTED__WORKER__DAEMON": "False",
    # Native libraries compute on one CPU each, as many programs share two here.
    "OMP_NUM_THREADS": "1",
}
TIMEOUT = 150

ENTRY = 'if __name__ == "__main__":\n    client = Client()\n    main(client)\n'
WITH_RUNNER = """if __name__ == "__main__":
    from batchlet import BatchletRunner

    with BatchletRunner() as runner, Client(runner) as client:
        main(client)
"""

# What workers say themselves, in an order and a number that no two runs have in common.
CHATTER = re.compile(
    r"""\[\d\d:\d\d:\d\d\]\ Task\ \[xgboost\.dask-\d+\]:\S+?\ got\ rank\ \d+
    | (\[LightGBM\]|Finding\ random\ open\ ports|(Trying\ to\ bind|Binding)\ port).*
    | (Connect(ing|ed)\ to\ rank|Local\ rank:|Listening).*
    | task-\d  # of `together`: each process with a client shows what `distributed.print` says
    | \[[#\ ]*\]\ \|\ \d+%\ Completed\ \|\s+\S+s(\x1b\[2K)?  # a bar of Dask's
    """,
    re.VERBOSE | re.MULTILINE,
)

# What xgboost says of a node without a default route, under whatever cluster; it then takes the scheduler's address.
NO_ROUTE = re.compile(
    r"""^(Failed\ to\ bind\ address\ 'None'
    | \s*\[[\d:]+\]\ /workspace/src/collective/result\.cc
    | -\ \[socket\.h:\d+
    | Stack\ trace:$
    | \s*\[bt\]\ ).*$""",
    re.VERBOSE | re.MULTILINE,
)


def need(wanted_by_it: Sequence[str]) -> None:
    """Skip what is not installed, or fail where it is a must."""
    missing = []
    for wanted in wanted_by_it:
        for name in wanted.split("|"):
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
        else:
            missing.append(wanted.split("|")[0])
    if not missing:
        return
    reason = f"{', '.join(missing)} not installed (pip install 'dask-batchlet[ecosystem]')"
    if "ecosystem" in os.environ.get("BATCHLET_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"BATCHLET_REQUIRE contains ecosystem, but: {reason}", pytrace=False)
    pytest.skip(reason)


def printed(result: Result) -> list[str]:
    """What the program printed, without what its libraries' workers print."""
    lines = CHATTER.sub("", result.stdout).replace("\r", "\n").splitlines()
    return [line.strip() for line in lines if line.strip()]


def warned(result: Result) -> set[str]:
    """What is on stderr, each kind of line once: without times, addresses, keys, numbers and Batchlet's own lines."""
    kinds = set()
    for line in NO_ROUTE.sub("", CHATTER.sub("", "\n".join(result.errors))).splitlines():
        if line.startswith(OURS) or not line.strip():
            continue
        text = re.sub(r"^\d{4}-\d\d-\d\d [\d:,]+ - ", "", line)
        text = re.sub(r"'.*'|\(.*\)|\{.*\}|\b(tcp|tls)://\S+|\b[0-9a-f]{6,}\b", "~", text)
        kinds.add(re.sub(r"\d+", "0", text).strip())
    return kinds


def assert_same(result: Result, plain: Result) -> None:
    assert result.rc == 0, str(result)
    assert printed(result) == printed(plain), f"{result}\n\nplain: {plain}"
    assert warned(result) - warned(plain) == set(), f"{result}\n\nplain: {plain}"
    ours = [line for line in result.errors if line.startswith(OURS)]
    assert len(ours) == 2, str(result)


class FourWays:
    """The tests of some programs; a subclass says which.

    Attributes
    ----------
    needs : mapping of str to sequence of str
        By program, what it needs beside the extra `test`: the names by which that is installed, alternatives divided by "|".
    also : sequence of str
        The programs that run in all four ways. Where the workers are, and who makes the cluster, is of no concern to a library:
        a few show that.
    """

    needs: ClassVar[Mapping[str, Sequence[str]]]
    also: ClassVar[Sequence[str]]

    def check(self, plain: Result) -> None:
        """Skip what plain Dask itself cannot do here."""

    @pytest.fixture
    def plain(self, program: str, plain_results: dict[str, Result]) -> Result:
        """The program of this test under plain Dask."""
        need(self.needs[program])
        if program not in plain_results:
            place = Place()
            try:
                path = str(PROGRAMS / f"{program}.py")
                plain_results[program] = place.run(sys.executable, path, env=ENVIRON, timeout=TIMEOUT)
            finally:
                place.close()
        result = plain_results[program]
        self.check(result)
        return result

    def test_it_runs_under_plain_dask(self, program: str, plain: Result) -> None:
        """The program is right: it runs under plain Dask, and prints something."""
        assert plain.rc == 0, str(plain)
        assert printed(plain), str(plain)

    def test_it_runs_by_python_m_batchlet(self, program: str, plain: Result) -> None:
        """`python -m batchlet program.py` alone does the same."""
        place = Place()
        try:
            path = str(PROGRAMS / f"{program}.py")
            command = [sys.executable, "-m", "batchlet", "--workers-per-node=2", path]
            assert_same(place.run(*command, env=ENVIRON, timeout=TIMEOUT), plain)
        finally:
            place.close()

    @pytest.mark.slurm
    def test_it_runs_by_python_m_batchlet_on_two_nodes(self, program: str, plain: Result, slurm_place: Place) -> None:
        """`srun -N2 -n5 python -m batchlet program.py` does the same."""
        path = str(PROGRAMS / f"{program}.py")
        command = ["srun", "-N2", "-n5", "--mem=3G", sys.executable, "-m", "batchlet", path]
        assert_same(slurm_place.run(*command, env=ENVIRON, timeout=TIMEOUT), plain)

    @pytest.mark.slurm
    def test_it_runs_with_a_runner_on_two_nodes(self, program: str, plain: Result, slurm_place: Place) -> None:
        """With `with BatchletRunner() as runner, Client(runner) as client:` around it, `srun -N2 -n5 python` does the same."""
        text = (PROGRAMS / f"{program}.py").read_text()
        assert text.count(ENTRY) == 1
        path = slurm_place.script(text.replace(ENTRY, WITH_RUNNER))
        command = ["srun", "-N2", "-n5", "--mem=3G", sys.executable, path]
        assert_same(slurm_place.run(*command, env=ENVIRON, timeout=TIMEOUT), plain)

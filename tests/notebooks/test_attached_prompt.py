"""``python -m batchlet attach`` at a terminal, with IPython and without: a client beside the run, until that is over."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from run_helpers import Place
from test_terminals import terminal

RUN = """
import sys, time
from batchlet import BatchletRunner
if __name__ == "__main__":
    with BatchletRunner(attach=True, workers_per_node=1) as runner:
        print(runner.run_id, flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("shell", ["IPython", "Python"])
def test_a_prompt_has_a_client_says_when_the_run_is_over_and_is_left_without_ending_it(
    place: Place, shell: str
) -> None:
    if shell == "Python":
        hidden = place.base / "hidden"
        hidden.mkdir()
        (hidden / "IPython.py").write_text("raise ImportError\n")
        place.environ["PYTHONPATH"] = str(hidden)
    place.environ["IPY_TEST_SIMPLE_PROMPT"] = "1"
    run = subprocess.Popen(
        [sys.executable, place.script(RUN)], cwd=place.cwd, env=place.environ, stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        attach = (sys.executable, "-m", "batchlet", "attach")
        with terminal(place, *attach) as left:
            left.expect(f"client: 1 worker of {name}; the run goes on when you leave (Ctrl-D).")
            left.ask("client.submit(abs, -41).result() + 1", "42\r\n")
            left.type("exit()")
            assert left.end() == 0
        with terminal(place, *attach, name[:9]) as seen:
            seen.expect("the run goes on when you leave")
            seen.ask("client.submit(abs, -42).result() + 1", "43\r\n")
            assert run.stdin is not None
            run.stdin.write("\n")
            run.stdin.flush()
            seen.expect(f"batchlet: run {name} is over; its client is closed")
            seen.ask("client.status[:4] + '!'", "'clos!'")
            seen.type("exit()")
            assert seen.end() == 0
            assert "Traceback" not in seen.seen
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert "Traceback" not in err
    finally:
        with contextlib.suppress(ProcessLookupError):
            run.kill()
        run.communicate()

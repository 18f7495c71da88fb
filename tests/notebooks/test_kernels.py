"""Notebooks: in a real kernel, here and in an allocation over two nodes, cells do what people expect of them."""

from __future__ import annotations

import pytest

pytest.importorskip("ipykernel", reason="no kernel to run cells in (pip install ipykernel)")

IMPORTS = "import time\nfrom batchlet import BatchletRunner\nfrom dask.distributed import Client"
START = "runner = BatchletRunner()\nrunner.start()"
CLIENT = "client = Client(runner)\nclient"
SUM = "client.submit(sum, [1, 2, 3]).result()"
BUSY = "print('busy', flush=True)\nclient.submit(time.sleep, 50).result()"
BEGIN = (IMPORTS, START, CLIENT)


def test_a_notebook_shows_its_cluster_and_its_client_and_computes(cells) -> None:
    """`runner` and `client` show workers, limits with their sources and the dashboard; a cell computes; close ends it."""
    (_, start, client, nodes, result, close, closed, again, late), _ = cells(
        *BEGIN,
        "import socket; len(set(client.run(socket.gethostname).values()))",
        SUM,
        "runner.close()",
        "runner",
        "runner.close()",
        "runner.security",
    )
    assert start["status"] == "ok", start
    assert start["plain"].startswith("<BatchletRunner "), start
    assert "running" in start["html"]
    # The sources of the workers' limits are shown where they are known: in a kernel on a node that has workers.
    assert ("memory_per_worker" if cells.where == "local" else "usable_memory") in start["html"]
    assert 'href="http://localhost:' in start["html"]
    assert start["text"].startswith("batchlet: "), start
    assert client["status"] == "ok", client
    assert "BatchletRunner" in client["html"]
    assert "usable_memory" in client["html"]
    assert nodes["plain"] == ("1" if cells.where == "local" else "2"), nodes
    assert result["plain"] == "6", result
    assert "batchlet: done after" in close["text"], close
    assert "closed" in closed["plain"]
    assert "closed" in closed["html"]
    assert (again["status"], again["text"]) == ("ok", ""), again
    assert late["error"] == "RuntimeError: This BatchletRunner is closed (security was asked for). Make a new one."


def test_interrupting_a_cell_raises_in_that_cell_and_leaves_the_cluster_alone(cells) -> None:
    """A cell that waits for a result, or sleeps, gets KeyboardInterrupt; the next one computes on the same workers."""
    (*_, before, waiting, sleeping, after, result, end), _ = cells(
        *BEGIN,
        "pids = sorted(client.run(__import__('os').getpid).values()); len(pids)",
        {"code": BUSY, "interrupt": True},
        {"code": "print('busy', flush=True)\ntime.sleep(50)", "interrupt": True},
        "pids == sorted(client.run(__import__('os').getpid).values()), runner.status.name",
        SUM,
        {"do": "shutdown"},
    )
    assert before["status"] == "ok", before
    for cell in (waiting, sleeping):
        assert cell["error"] == "KeyboardInterrupt: ", cell
        assert cell["seconds"] < 10, cell
        assert "batchlet" not in cell["text"], cell
    assert after["plain"] == "(True, 'running')", after
    assert result["plain"] == "6", result
    assert end["seconds"] < 15


# What does not depend on where the kernel runs.
LOCAL = pytest.mark.parametrize("cells", ["local"], indirect=True)


@pytest.mark.parametrize(
    ("cells", "how"),
    [
        ("local", "shutdown"),
        ("local", "kill"),
        pytest.param("salloc", "restart", marks=pytest.mark.slurm),
        pytest.param("salloc", "kill", marks=pytest.mark.slurm),
    ],
    indirect=["cells"],
)
def test_a_kernel_that_ends_without_close_leaves_nothing_behind(cells, how: str) -> None:
    """Shut down, restarted or killed while workers are busy: no process and no file is left, and a new kernel works."""
    steps = [*BEGIN, "futures = client.map(time.sleep, [60] * 4, pure=False); time.sleep(0.5)", {"do": how}]
    if how == "restart":
        steps += ["1 + 1", {"do": "shutdown"}]
    seen, _ = cells(*steps)
    assert seen[1]["status"] == "ok", seen
    if how == "restart":
        assert seen[-2]["plain"] == "2", seen
    assert seen[4]["seconds"] < 20, seen


def test_sigterm_ends_a_running_cell_then_the_run_then_the_kernel_with_143(cells) -> None:
    """The cell gets TerminatedError, `on_terminate` is called, and the kernel ends with 143 well before the grace period."""
    (*_, cell, kernel), _ = cells(
        *BEGIN,
        "runner.on_terminate(lambda number: print('told of', number, client.submit(sum, [1]).result(), flush=True))",
        {"code": BUSY, "terminate": True},
        {"do": "wait"},
    )
    assert "told of 15 1" in cell["text"], cell
    assert cell["error"].startswith("TerminatedError: SIGTERM"), cell
    assert kernel["rc"] == 143, kernel
    assert cell["seconds"] + kernel["seconds"] < 30, (cell, kernel)


@LOCAL
def test_when_the_time_is_up_the_running_cell_is_told_then_run_and_kernel_end_with_84(cells) -> None:
    """The function is called with a cluster that works, the cell gets `TimeIsUpError`, and the kernel goes as its time does."""
    (*_, told, cell, kernel), _ = cells(
        IMPORTS,
        "runner = BatchletRunner(time_limit='10min')\nrunner.start()\nclient = Client(runner)",
        "def save():\n    print('saved', client.submit(sum, [1, 2]).result(), flush=True)\n"
        "runner.before_end(runner.time_left - 3, save)",
        f"try:\n    client.submit(time.sleep, 50).result()\nfinally:\n    print('finally', {SUM})",
        {"do": "wait"},
    )
    assert told["status"] == "ok", told
    assert "batchlet: time is up: the run ends at " in cell["text"], cell
    assert "saved 3\nfinally 6\n" in cell["text"], cell
    assert cell["error"].startswith("TimeIsUpError: time is up"), cell
    assert "it is started again" not in cell["text"], cell
    assert kernel["rc"] == 84, kernel


@LOCAL
def test_sigterm_ends_an_idle_kernel_with_143(cells) -> None:
    """Without a cell that runs, SIGTERM ends run and kernel at once."""
    (*_, kernel), _ = cells(*BEGIN, {"do": "terminate"})
    assert kernel["rc"] == 143, kernel
    assert kernel["seconds"] < 10, kernel


def test_top_level_await_starts_uses_and_closes_an_asynchronous_cluster(cells) -> None:
    """`await runner`, `await Client(...)`, `await runner.close()`, as with Dask's own clusters."""
    (_, start, client, result, logs, close, again), _ = cells(
        IMPORTS,
        "runner = await BatchletRunner(asynchronous=True)\nrunner",
        "client = await Client(runner, asynchronous=True)\nclient",
        "await client.submit(sum, [1, 2, 3])",
        "await runner.wait_for_workers(1)\nlogs = await runner.get_logs()\nsorted(logs)[:2], len(runner.workers) - len(logs)",
        "await runner.close()\nawait runner.close()\nrunner",
        "await runner.start()",
    )
    assert "running" in start["html"], start
    assert "usable_memory" in client["html"], client
    assert result["plain"] == "6", result
    assert logs["plain"] == "(['Cluster', 'Scheduler'], -2)", logs
    assert "closed" in close["html"], close
    assert again["error"] == "RuntimeError: This BatchletRunner was used before, and is closed. Make a new one."


@LOCAL
def test_misuse_is_one_sentence_and_the_session_goes_on(cells) -> None:
    """Started twice, scaled, made with an unknown option: an error in that cell, once, and the cluster works on."""
    (*_, twice, scale, adapt, unknown, result), _ = cells(
        *BEGIN, "runner.start()", "runner.scale(4)", "runner.adapt(maximum=4)", "BatchletRunner(bogus=1)", SUM
    )
    assert twice["error"].startswith("RuntimeError: This BatchletRunner is running already."), twice
    assert scale["error"].startswith("RuntimeError: scale() cannot be: "), scale
    assert adapt["error"].startswith("RuntimeError: adapt() cannot be: "), adapt
    assert unknown["error"].startswith("RuntimeError: Unknown keyword bogus."), unknown
    assert all(cell["text"] == "" for cell in (twice, scale, adapt, unknown))
    assert result["plain"] == "6", result


@LOCAL
def test_a_cell_that_is_run_again_gets_the_same_cluster(cells) -> None:
    """A second runner beside a running one is another name for it, for `close` too."""
    (*_, second, result, close, first), _ = cells(
        *BEGIN,
        START + "\nrunner.scheduler_address == client.scheduler.address",
        SUM,
        "runner.close()",
        "client.status, runner",
    )
    assert second["plain"] == "True", second
    assert result["plain"] == "6", result
    assert "batchlet: done after" in close["text"], close
    assert first["plain"].startswith("('closed',"), first
    assert "running" not in first["plain"], first


@LOCAL
def test_a_with_in_a_cell_ends_with_the_interrupt_of_the_cell(cells) -> None:
    """What is written as a script behaves as one: the interrupt leaves the block, and the cluster ends."""
    block = (
        "with BatchletRunner() as runner, Client(runner) as client:\n    print('busy', flush=True)\n    time.sleep(50)"
    )
    (_, cell, after), _ = cells(IMPORTS, {"code": block, "interrupt": True}, "runner")
    assert cell["error"].startswith("InterruptedRunError: "), cell
    assert "batchlet: Ctrl-C" in cell["text"] or "ended by" in cell["text"], cell
    assert "closed" in after["html"], after


@pytest.mark.parametrize("cells", [pytest.param("salloc", marks=pytest.mark.slurm)], indirect=True)
def test_a_cluster_that_is_lost_is_told_and_the_kernel_stays(cells) -> None:
    """The scheduler's process is killed in an allocation: the reason is shown, the cell ends, what the session has stays."""
    (*_, kill, cell, kept, state, again, end), _ = cells(
        *BEGIN,
        "import os, signal\npid = client.run_on_scheduler(os.getpid)\nmine = 41\nos.kill(pid, signal.SIGKILL)",
        BUSY,
        "mine + 1",
        "runner",
        SUM,
        {"do": "shutdown"},
    )
    assert kill["status"] == "ok", kill
    assert cell["status"] == "error", cell
    assert cell["seconds"] < 30, cell
    assert kept["plain"] == "42", kept
    assert again["status"] == "error", again
    assert "lost: The scheduler, a process of rank 0 on node " in state["html"], state
    assert "was killed by SIGKILL" in state["html"], state
    assert end["seconds"] < 15, end

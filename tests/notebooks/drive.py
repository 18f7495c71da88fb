"""Run cells in a real kernel, as a notebook's front end does, and print what its user sees: one JSON object a cell.

``python drive.py steps.json``: a list of cells, ``{"code": ..., "interrupt": true}`` (interrupted as soon as it has printed
"busy"), and of actions: ``{"do": "restart" | "kill" | "terminate" | "shutdown" | "wait"}``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

TIMEOUT = 60.0


def run(manager: KernelManager, client: Any, step: dict[str, Any]) -> dict[str, Any]:
    """Run a cell; `status` is "dead" if the kernel dies of it."""
    seen: dict[str, Any] = {"text": "", "html": "", "plain": "", "error": "", "status": ""}
    interrupted = not step.get("interrupt") and not step.get("terminate")
    number = client.execute(step["code"], allow_stdin=False)
    began = time.monotonic()
    idle = False
    while not (idle and seen["status"]):
        if time.monotonic() - began > TIMEOUT:
            seen["status"] = "timeout"
            break
        alive = manager.is_alive()
        for channel in (client.iopub_channel, client.shell_channel):
            try:
                message = channel.get_msg(timeout=0.05)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                seen["text"] += content["text"]
            elif kind in ("execute_result", "display_data"):
                seen["html"] += content["data"].get("text/html", "")
                seen["plain"] += content["data"].get("text/plain", "")
            elif kind == "error":
                seen["error"] = f"{content['ename']}: {content['evalue']}"
            elif kind == "status":
                idle = content["execution_state"] == "idle"
            elif kind == "execute_reply":
                seen["status"] = content["status"]
        if not interrupted and "busy" in seen["text"]:
            interrupted = True
            time.sleep(0.3)
            if step.get("terminate"):
                os.kill(manager.provisioner.pid, signal.SIGTERM)
            else:
                manager.interrupt_kernel()
        if not alive:
            seen["status"] = "dead"
            break
    return {**seen, "seconds": time.monotonic() - began}


def act(manager: KernelManager, client: Any, what: str) -> dict[str, Any]:
    """Do to the kernel what its user or the system does."""
    process = manager.provisioner.process
    began = time.monotonic()
    if what == "restart":
        manager.restart_kernel()
        client.wait_for_ready(TIMEOUT)
    elif what == "kill":
        os.kill(process.pid, signal.SIGKILL)
    elif what == "terminate":
        # The kernel has nothing to do by then.
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGTERM)
    elif what == "shutdown":
        manager.shutdown_kernel()
    if what in ("kill", "terminate", "wait"):
        while process.poll() is None and time.monotonic() - began < TIMEOUT:
            time.sleep(0.05)
    return {"rc": process.poll(), "seconds": time.monotonic() - began}


def main() -> None:
    manager = KernelManager(kernel_name="python3")
    # The kernel's own channels: on the loopback, and signed; newer kernels say that this is not encrypted.
    manager.start_kernel(stderr=None if "DRIVE_SHOW" in os.environ else open(os.devnull, "w"))  # noqa: SIM115, PTH123
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(TIMEOUT)
    try:
        for step in json.loads(Path(sys.argv[1]).read_text()):
            found = act(manager, client, step["do"]) if "do" in step else run(manager, client, step)
            sys.stdout.write("STEP " + json.dumps(found) + "\n")
            sys.stdout.flush()
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel()
        manager.cleanup_resources()


if __name__ == "__main__":
    main()

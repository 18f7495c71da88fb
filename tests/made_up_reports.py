"""Reports of runs that never were, in the form of ``batchlet/run_report/schema.json``."""

from __future__ import annotations

import math
import random
from typing import Any

FORMAT = "batchlet-report/1"
GIB = 1 << 30
BEGAN = 1_764_320_400.0
# Commands of a terminal, the end of a script and of a style, HTML, a template's braces, formulas, half a surrogate pair,
# a mark that turns writing around, and letters that are two columns wide.
HOSTILE = "\x1b[31m</script></style><script>alert(1)</script><b onclick=x>&amp;{{ 7*7 }}{% raw %}$$x$$@y`\ud800\u202e\0\r日本語"


def report(
    *,
    nodes: int = 2,
    workers: int = 4,
    samples: int = 120,
    seconds: float = 3600.0,
    threads: int = 2,
    limit: float = 4 * GIB,
    busy: float = 0.8,
    peak: float = 0.5,
    tasks: float | None = None,
    state: str = "done",
    seed: int = 1,
) -> dict[str, Any]:
    """A run whose CPUs were busy to this fraction, whose workers had this peak, with this many tasks at a time."""
    draw = random.Random(seed)
    ready = min(3.5, seconds / 10)
    lasted = seconds - ready
    at = [round(ready + lasted * (i + 1) / samples, 2) for i in range(samples)]
    per_node = {f"n{number + 1}": [] for number in range(nodes)}  # type: dict[str, list[str]]
    for number in range(workers):
        per_node[f"n{number * nodes // workers + 1}"].append(str(number + 2))
    made_workers, made_nodes = {}, {}
    for position, (node, names) in enumerate(per_node.items()):
        cpus = float(max(1, len(names)) * threads)
        memory = max(1, len(names)) * limit
        # The last node is the idlest.
        level = busy * (1.0 if nodes == 1 else 1.1 - 0.2 * position / (nodes - 1))
        level = min(1.0, level)
        wave = [0.9 + 0.1 * math.sin(i / 7 + position) for i in range(samples)]
        made_nodes[node] = {
            "figures": {
                "cpus": {"value": int(cpus), "source": "SLURM_CPUS_ON_NODE"},
                "memory": {"value": memory, "source": f"SLURM_MEM_PER_CPU x {int(cpus)} CPUs"},
                "memory_headroom_frac": {"value": 0.0, "source": "default"},
                "workers_per_node": {"value": len(names), "source": "one per worker rank"},
                "threads_per_worker": {"value": threads, "source": "the workers' CPUs / workers"},
                "memory_per_worker": {"value": limit, "source": "the workers' memory / workers"},
            },
            "workers": names,
            "cpus": cpus,
            "memory": memory,
            "at": at,
            "cpu": [round(cpus * level * value, 3) for value in wave],
            "used": [round(memory * peak * min(1.0, 0.3 + i / samples) * wave[i]) for i in range(samples)],
            "spilled": [0.0] * samples,
            "sent": [round(i * 1e7 * (position + 1)) for i in range(samples)],
            "tasks": [
                round(cpus * level) if tasks is None else (tasks if position == 0 else 0.0) for _ in range(samples)
            ],
            "gpu": [],
            "gpu_memory": [],
        }
        for name in names:
            own = min(1.0, level * draw.uniform(0.9, 1.1))
            made_workers[name] = {
                "node": node,
                "rank": int(name),
                "threads": threads,
                "memory_limit": limit,
                "cpu_seconds": round(threads * own * lasted, 1),
                "memory_peak": round(limit * peak * draw.uniform(0.7, 1.0)),
                "spilled_peak": 0,
                "sent": round(draw.uniform(1e8, 1e10)),
                "received": round(draw.uniform(1e8, 1e10)),
                "tasks": draw.randrange(100, 1000),
                "busy_seconds": round(threads * own * lasted, 1),
                "came": ready,
                "went": None,
                "restarts": 0,
            }
    if made_workers:
        most = max(made_workers, key=lambda name: made_workers[name]["memory_peak"])
        made_workers[most]["memory_peak"] = limit * peak
    used = sum(worker["cpu_seconds"] for worker in made_workers.values())
    granted = sum(node["cpus"] for node in made_nodes.values()) * lasted
    return {
        "format": FORMAT,
        "versions": {"batchlet": "0.1.0", "python": "3.11.7", "dask": "2026.8.0", "distributed": "2026.8.0"},
        "run": {
            "id": "slurm-hpc-4242.0",
            "mode": "slurm",
            "job": "job 4242.0",
            "script": ["python", "analysis.py", "--year", "2026"],
            "attempt": 1,
            "ranks": workers + 2,
        },
        "outcome": {
            "state": state,
            "error": None,
            "exit_code": 0 if state == "done" else None,
            "blocks": 1,
        },
        "time": {
            "began": BEGAN,
            "ready": ready,
            "ended": seconds if state != "running" else None,
            "updated": seconds,
            "limit": None,
        },
        "nodes": made_nodes,
        "workers": made_workers,
        "use": {
            "cpu_seconds": used,
            "cpu_granted_seconds": granted,
            "cpu_fraction": used / granted if granted else None,
            "memory_peak_fraction": peak if made_workers else None,
            "memory_peak_worker": most if made_workers else None,
            "spilled": 0,
            "sent": sum(worker["sent"] for worker in made_workers.values()),
        },
        "timeline": {
            **{
                f"workers of node {node}": [
                    ["process started", 0.2],
                    ["Dask imported", round(0.9 + 0.01 * position, 2)],
                    ["rank 0 found", 1.2],
                    ["last worker started", round(ready - 0.1, 2)],
                ]
                for position, node in enumerate(made_nodes)
            },
            "the client": [["process started", 0.0], ["rank 0 found", 0.9], ["ready", ready]],
            "the scheduler": [["process started", 1.4], ["Dask imported", 1.45], ["scheduler listens", 1.5]],
        },
        "task_groups": [
            {
                "name": name,
                "tasks": number,
                "failed": 0,
                "seconds": round(used * share, 1),
                "transfer_seconds": round(used * share / 20, 1),
                "result_bytes": number * 1e6,
                "first": ready,
                "last": seconds,
            }
            for name, number, share in (("read_csv", 400, 0.6), ("groupby-agg", 900, 0.3), ("sum", 300, 0.1))
        ],
        "events": [],
        "logs": [],
        "logs_dropped": 0,
        "advice": [],
    }


def eventful(**keywords: Any) -> dict[str, Any]:
    """A run in which things happened: a worker that died, spilled data, lines in the log, a failure at the end."""
    made = report(**{"state": "failed", "peak": 0.93, **keywords})
    seconds = made["time"]["updated"]
    name, worker = next(iter(made["workers"].items()))
    worker["restarts"] = 2
    worker["spilled_peak"] = 2 * GIB
    node = made["nodes"][worker["node"]]
    half = len(node["spilled"]) // 2
    node["spilled"] = [0.0] * half + [2.0 * GIB] * (len(node["spilled"]) - half)
    made["use"] |= {"spilled": 3 * GIB}
    if made["outcome"]["state"] != "done":
        made["outcome"] |= {
            "error": {"kind": "ClusterLostError", "message": "The scheduler (rank 0, node n1) was killed by signal 9."},
            "exit_code": 81,
        }
    made["time"]["limit"] = 2 * seconds
    made["events"] = [
        {
            "at": seconds * 0.4,
            "kind": "worker",
            "text": f"worker {name} was killed by signal 9",
            "node": worker["node"],
        },
        {"at": seconds * 0.41, "kind": "worker", "text": f"worker {name} was started anew", "node": worker["node"]},
        {"at": seconds * 0.7, "kind": "signal", "text": "SIGTERM came, the script has 20 s", "node": None},
        {"at": seconds, "kind": "failure", "text": "the scheduler was killed by signal 9", "node": "n1"},
    ]
    made["logs"] = [
        {
            "at": seconds * (0.3 + number / 100),
            "level": ("warning", "error", "critical")[number % 3],
            "who": f"worker {name}",
            "rank": 2,
            "node": worker["node"],
            "logger": "distributed.worker.memory",
            "text": f"Unmanaged memory use is high: {number} GiB. This may indicate a memory leak or the memory may not be "
            "released to the OS.",
        }
        for number in range(6)
    ]
    made["logs_dropped"] = 12
    return made


def hostile(value: Any) -> Any:
    """The same with every text replaced, names of fields and what has to be one of a few words left alone."""
    if isinstance(value, dict):
        kept = ("format", "state", "kind", "level", "about", "mode")
        return {
            name: (one if name in kept and isinstance(one, str) and value.get("message") is None else hostile(one))
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def evil() -> dict[str, Any]:
    """A report in which every text is hostile."""
    made = hostile(eventful())
    made["workers"] = {HOSTILE + name: worker for name, worker in made["workers"].items()}
    made["nodes"] = {HOSTILE + name: node for name, node in made["nodes"].items()}
    made["timeline"] = {HOSTILE: [[HOSTILE, 1.0]]}
    made["advice"] = [{"about": "cpu", "text": f"`{HOSTILE}` {HOSTILE}"}]
    for key in ("logs", "events"):
        made[key] = made[key][:2]
    made["format"] = FORMAT
    return made

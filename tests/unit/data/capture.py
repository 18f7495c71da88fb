#!/usr/bin/env python3
"""Capture what the tasks of real Slurm jobs see, as the data files of tests/unit.

    SLURM_CONF=... python tests/unit/data/capture.py [name ...]

Needs a cluster of at least 4 nodes with 8 CPUs and 4096 MiB each (``tests/slurm/cluster up``). One file per shape of job:
the command, the variables that all its tasks share, those that differ per task, and the memory cgroup limit and CPU mask
that each task had. Variables that name the machine or the person who captured are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LEFT_OUT = {
    "SLURM_CLUSTER_NAME", "SLURM_CONF", "SLURM_JOB_ACCOUNT", "SLURM_JOB_GID", "SLURM_JOB_UID", "SLURM_JOB_USER",
    "SLURM_LAUNCH_NODE_IPADDR", "SLURM_PRIO_PROCESS", "SLURM_SCRIPT_CONTEXT", "SLURM_SRUN_COMM_HOST",
    "SLURM_SRUN_COMM_PORT", "SLURM_STEP_LAUNCHER_PORT", "SLURM_SUBMIT_DIR", "SLURM_SUBMIT_HOST", "SLURM_TASK_PID",
    "SLURM_TEST_CLUSTER_STATE", "SLURM_UMASK", "SLURM_WORKING_CLUSTER",
}  # fmt: skip

SHAPES = {
    "even": "srun -N2 -n8 --ntasks-per-node=4 TASK",
    "uneven": "srun -N2 -n5 TASK",
    "uneven_three_nodes": "srun -N3 -n7 TASK",
    "one_node_full": "srun -N1 -n8 TASK",
    "one_per_node": "srun -N4 -n4 -c8 TASK",
    "cpus_per_task": "srun -N2 -n6 -c2 TASK",
    "cpus_per_task_odd": "srun -N4 -n4 --ntasks-per-node=1 -c3 TASK",
    "mem": "srun -N2 -n6 --mem=2G TASK",
    "mem_per_cpu": "srun -N2 -n6 -c2 --mem-per-cpu=256M TASK",
    "bare": "srun -n4 TASK",
    "single_task": "srun -n1 -c4 TASK",
    "two_tasks": "srun -n2 --mem=1G TASK",
    "exclusive": "srun -N2 -n4 --exclusive TASK",
    "mem_zero": "srun -N1 -n4 --mem=0 TASK",
    "exclusive_mem_zero": "srun -N3 -n3 --exclusive --mem=0 -c8 TASK",
    "overcommit": "srun -N1 -n12 --overcommit --mem=2G TASK",
    "overcommit_two_nodes": "srun -N2 -n10 --overcommit -c1 --mem=1G TASK",
    "cyclic": "srun -N2 -n6 -m cyclic TASK",
    "cyclic_uneven": "srun -N3 -n7 -m cyclic --mem=1G TASK",
    "plane": "srun -N2 -n8 --ntasks-per-node=4 -m plane=2 TASK",
    "sbatch_step_smaller": "sbatch -N4 -n16 --mem=1G : srun -N2 -n6 TASK",
    "sbatch_step_relative": "sbatch -N4 -n16 --ntasks-per-node=4 --mem=1G : srun -N2 -n4 --relative=2 TASK",
    "sbatch_step_own_mem": "sbatch -N1 -n8 --mem=2G : srun -n4 --mem=512M TASK",
    "sbatch_step_exact": "sbatch -N1 -n8 --mem-per-cpu=256M : srun -n3 --exact TASK",
    "sbatch_mem_per_cpu": "sbatch -N2 -n4 -c3 --mem-per-cpu=200M : srun -n4 -c3 TASK",
    "sbatch_default_memory": "sbatch -N1 -n4 : srun TASK",
    "sbatch_array": "sbatch -N1 -n3 --array=7 --mem=600M : srun TASK",
    "sbatch_requeued": "sbatch -N1 -n3 --mem=600M --requeue : srun TASK",
    "sbatch_without_srun": "sbatch -N2 -n6 --mem=1G : TASK",
    "salloc_step_smaller": "salloc -N2 -n8 --mem=1G srun -N2 -n3 TASK",
    "salloc_without_srun": "salloc -N2 -n6 --mem=1G TASK",
}
# These need nodes with GPUs (``up --gpus a100:4: a100:2: mi250:2:amd_gpu_env none:0:``), the last one ``--constrain-devices``
# as well.
GPU_SHAPES = {
    "gpus_gres": "srun -N1 -n4 --mem=1G --gres=gpu:4 TASK",
    "gpus_uneven": "srun -N2 -n5 -c2 --mem=1G --gpus=6 TASK",
    "gpus_per_task": "srun -N1 -n4 --mem=1G --gpus-per-task=1 TASK",
    "gpus_single": "sbatch -N1 -n4 --mem=1G --gres=gpu:4 : srun --gpu-bind=single:1 TASK",
    "gpus_amd": "srun -N1 -n4 --mem=1G --gres=gpu:mi250:2 TASK",
    "gpus_per_task_constrained": "srun -N1 -n4 --mem=1G --gpus-per-task=1 TASK",
}
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")


def look() -> dict[str, object]:
    """What one task sees."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SLURMD_NODENAME", *GPU_VARIABLES)) and name not in LEFT_OUT
    }
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            level = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            files = [place / "memory.limit_in_bytes" for place in (level, *level.parents)]
            limits += [int(file.read_text()) for file in files if file.exists()]
    least = min(limits, default=1 << 62)
    seen = {"cgroup_memory": least if least < 1 << 60 else None, "affinity": len(os.sched_getaffinity(0))}
    return {"env": variables, "seen": seen}


def tasks_of(command: str, folder: Path) -> list[dict]:
    """Run the command; one entry per task."""
    task = f"/usr/bin/python3 -S -I {Path(__file__).resolve()} --task"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
    if command.startswith("sbatch"):
        submit, _, inner = command.partition(" : ")
        out = folder / "out"
        script = "#!/bin/bash\n"
        if "--requeue" in submit:
            script += 'if [ -z "$SLURM_RESTART_COUNT" ]; then scontrol requeue $SLURM_JOB_ID; sleep 60; exit; fi\n'
        script += inner.replace("TASK", task) + "\necho END\n"
        (folder / "job.sh").write_text(script)
        subprocess.run([*submit.split(), "-o", str(out), str(folder / "job.sh")], check=True, env=environment)
        until = time.monotonic() + 300
        while not (out.exists() and out.read_text().endswith("END\n")):
            if time.monotonic() > until:
                sys.exit(f"no end of {command}")
            time.sleep(0.2)
        text = out.read_text()
    else:
        done = subprocess.run(
            command.replace("TASK", task).split(), stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        text = done.stdout
    tasks = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if not tasks:
        sys.exit(f"no task spoke in {command!r}: {text}")
    return sorted(tasks, key=lambda task: int(task["env"].get("SLURM_PROCID", 0)))


def main() -> None:
    if sys.argv[1:] == ["--task"]:
        print(json.dumps(look()))
        return
    version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    for name in sys.argv[1:] or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            tasks = tasks_of({**SHAPES, **GPU_SHAPES}[name], Path(folder))
        common = {
            key: value for key, value in tasks[0]["env"].items() if all(task["env"].get(key) == value for task in tasks)
        }
        ranks = [{key: value for key, value in sorted(task["env"].items()) if key not in common} for task in tasks]
        lines = [json.dumps({**rank, "seen": task["seen"]}) for rank, task in zip(ranks, tasks, strict=True)]
        (HERE / f"{name}.json").write_text(
            "{\n"
            f'"command": {json.dumps({**SHAPES, **GPU_SHAPES}[name])},\n"slurm": {json.dumps(version)},\n'
            f'"common": {json.dumps(dict(sorted(common.items())), indent=1)},\n'
            '"ranks": [\n' + ",\n".join(lines) + "\n]\n}\n"
        )
        print(name, len(tasks), "tasks", flush=True)


if __name__ == "__main__":
    main()

"""Where a run's secrets are to be found: in some text, in the files of this machine."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

from held_runs import Held


def secrets_in(data: bytes, told: dict[str, Any], *names: str) -> list[str]:
    """Names of the run's secrets that are in there, in whatever spelling."""
    wanted = {name: told.get(name) for name in names or ("token", "secret")}
    lines = told.get("key", "").splitlines()
    # The second line of the PEM is all of the key itself.
    wanted["key"] = lines[2] if len(lines) > 2 else None
    found = [name for name, text in wanted.items() if text and text.encode() in data]
    return found + (["a private key"] if b"PRIVATE KEY" in data else [])


def files_with(run: Held, told: dict[str, Any]) -> list[str]:
    """The files that hold the run's private key."""
    needle = told["key"].splitlines()[2].encode()
    found = []
    for top in (run.base, Path("/dev/shm"), Path("/tmp"), Path("/var/tmp")):
        for folder, folders, names in os.walk(top):
            # Of the temporary directories what is new; other people's tests have keys of their own.
            folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink()]
            # No run writes into a virtual environment or a checkout, which have more files than all the rest.
            if "pyvenv.cfg" in names or ".git" in folders or ".git" in names:
                folders[:] = []
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_mtime >= run.began - 1 and status.st_size < 1 << 26:
                        data = path.read_bytes()
                        if needle in data or (top == run.base and b"PRIVATE KEY" in data):
                            found.append(str(path))
    return found

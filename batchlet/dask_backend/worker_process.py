"""Imported by the fork server, and by nothing else: what all worker processes of a host begin with.

Importing this changes the process that imports it: it leaves the group of its starter, so that a Ctrl-C at a terminal or a
signal to all tasks of a Slurm step does not end the workers while the script still uses them to save its work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings

# The point of a fork server: imported once, for all workers.
from distributed import Worker
from distributed.core import Status

from . import rank_preload  # noqa: F401 - every worker has it
from .compat.dask_internals import living, parse_configuration_once
from .compat.http_servers import deafen_workers
from .compat.log_messages import SLOW_SCRATCH, is_task_of_the_end, is_told_by_the_nanny
from .compat.tls_connections import limit_handshakes
from .log_tap import FILTERS
from .logs import mention_strangers_once

if os.getpgrp() != os.getpid():
    os.setsid()

parse_configuration_once()


class _Chatter(logging.Filter):
    """Drops what a worker says of tasks and connections that end because it was told to end.

    While it works, a connection that breaks is worth a line; the traceback of Dask's internals is not.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        # Why a worker did not start, its host reports.
        if is_task_of_the_end(text) or is_told_by_the_nanny(text):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, (OSError, asyncio.CancelledError)):
            return True
        record.exc_info = record.exc_text = None
        return any(worker.status == Status.running for worker in living(Worker))


for _handler in logging.getLogger("distributed").handlers:
    _handler.addFilter(_Chatter())
FILTERS.append(_Chatter())
mention_strangers_once()
warnings.filterwarnings("ignore", SLOW_SCRATCH)
deafen_workers()
limit_handshakes()

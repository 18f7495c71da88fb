"""Imported by the fork server, and by nothing else: what all worker processes of a host begin with.

Importing this changes the process that imports it: it leaves the group of its starter, so that a Ctrl-C at a terminal or a
signal to all tasks of a Slurm step does not end the workers while the script still uses them to save its work.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import warnings
from typing import Any

import dask.config

# The point of a fork server: imported once, for all workers.
from distributed import Worker
from distributed.core import Status
from tornado.routing import RuleRouter

from .processes import mention_strangers_once

if os.getpgrp() != os.getpid():
    os.setsid()

# Every worker reads Dask's configuration files anew; they are parsed once here, for all of them.
if hasattr(dask.config, "_load_config_file"):
    dask.config._load_config_file = functools.cache(dask.config._load_config_file)
    dask.config.collect()


class _Chatter(logging.Filter):
    """Drops what a worker says of tasks and connections that end because it was told to end.

    While it works, a connection that breaks is worth a line; the traceback of Dask's internals is not.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        # Why a worker did not start, its host reports.
        if "ended with CancelledError" in text or text in ("Failed to initialize worker", "Failed to start worker"):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, (OSError, asyncio.CancelledError)):
            return True
        record.exc_info = record.exc_text = None
        return any(worker.status == Status.running for worker in Worker._instances)


for _handler in logging.getLogger("distributed").handlers:
    _handler.addFilter(_Chatter())
mention_strangers_once()
warnings.filterwarnings("ignore", "Creating scratch directories is taking")

_start_http_server = Worker.start_http_server


def _start_deaf(self: Any, *positional: Any, **keywords: Any) -> None:
    """Start a worker's HTTP server, which Dask always does; where the run is closed it knows no page, whatever it was given.

    Its routes can be left out by configuration, all but ``/sitemap.json``; options passed through bring them back.
    """
    _start_http_server(self, *positional, **keywords)
    if self.security.require_encryption:
        self.http_server.request_callback = RuleRouter([])


Worker.start_http_server = _start_deaf

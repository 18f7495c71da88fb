"""From the raw inputs of a launch to a `Rank`: settings and identity, found out in one way for all processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..settings import Settings
from . import inputs
from .rank import Rank

__all__ = ["resolve"]


def resolve(words: Mapping[str, Any], environ: Mapping[str, str], *, from_elsewhere: bool = False) -> Rank:
    """Find out from raw inputs who a process is and what the user asked for.

    Parameters
    ----------
    words : mapping
        As `batchlet.node.inputs.for_agent` has made them.
    environ : mapping of str to str
        The environment of the process in question.
    from_elsewhere : bool
        Whether they were made on another node.

    Raises
    ------
    EndError
        If something in the input is wrong.
    """
    options, _ = inputs.unpack_options(words)
    if isinstance(options, list):
        from ..command_line import parse

        line = parse(options, environ)
        options = line.options
        if line.program is not None:
            line.program.prepare()
            line.program.check()
    until = time.monotonic() + words["patience"] if from_elsewhere else words["until"]
    settings = Settings.resolve(options, {**environ, **words["variables"]})
    return Rank.identify(settings, environ, until - settings.start_timeout, layout=words.get("layout"))

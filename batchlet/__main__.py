"""Entry point of ``python -m batchlet``."""

from __future__ import annotations

import os
import sys

from .commands import find_command
from .node.attach import attach_early, may_attach_early

if __name__ == "__main__":
    # The tasks of a command, such as `join` on the nodes of another job, are no ranks.
    if find_command(sys.argv[1:]) is None and may_attach_early(os.environ, sys.argv[1:]):
        attach_early(os.environ, sys.argv[1:])
    from .cli import main

    sys.exit(main())

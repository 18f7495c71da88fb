"""Entry point of ``python -m batchlet``."""

from __future__ import annotations

import os
import sys

from .node.attach import attach_early, may_attach_early

if __name__ == "__main__":
    # `join` is for the nodes of another run's guest: its tasks are no ranks.
    if sys.argv[1:2] != ["join"] and may_attach_early(os.environ, sys.argv[1:]):
        attach_early(os.environ, sys.argv[1:])
    from .cli import main

    sys.exit(main())

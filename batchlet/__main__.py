"""Entry point of ``python -m batchlet``."""

from __future__ import annotations

import os
import sys

from .node.attach import may_sit_quickly, read_simply, sit_quickly

if __name__ == "__main__":
    if may_sit_quickly(os.environ, sys.argv[1:]):
        sit_quickly(os.environ, *read_simply(sys.argv[1:]))
    from .cli import main

    sys.exit(main())

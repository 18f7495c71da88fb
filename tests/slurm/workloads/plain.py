"""The least script. The argument is the runner's options as JSON."""

import json
import sys

from batchlet import BatchletRunner

with BatchletRunner(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")):
    sys.stdout.write("the block runs\n")

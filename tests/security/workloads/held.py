"""A run that stands still to be attacked, and then shows that it still works.

Arguments: a directory. It writes the run's secrets into a file there, for the test's eyes only.
"""

import base64
import gc
import hashlib
import json
import os
import pickle
import ssl
import sys
import time
from pathlib import Path

from batchlet import BatchletRunner
from batchlet.rendezvous import CoordinatorRecord

if "USE_MPI" in os.environ:
    from mpi4py import MPI  # noqa: F401 - to have it started by the script

place = Path(sys.argv[1])


def client_of(runner):
    # Not at the top, so that the other ranks need not import it: many runs are started on a small machine.
    from dask.distributed import Client

    return Client(runner)


def tell(runner, client):
    credentials = getattr(runner.security, "credentials", None)
    # Wherever the runner keeps its record.
    record = next((each for each in gc.get_objects() if isinstance(each, CoordinatorRecord)), None)
    link = runner.dashboard_link.split("/")
    told = {
        "dashboard": runner.dashboard_link,
        "scheduler": runner.scheduler_address,
        "workers": list(client.scheduler_info(n_workers=-1)["workers"]),
        "token": link[3] if len(link) == 5 else None,
        "secret": record.secret if record else None,
        "coordinator": [record.host, record.port] if record else None,
        "run_id": runner.run_id,
        # As a user would hand it on to a client elsewhere.
        "pickle": base64.b64encode(pickle.dumps(runner.security)).decode(),
    }
    if credentials is not None:
        told["pem"] = credentials.certificate + credentials.key
        told["key"] = credentials.key
        told["fingerprint"] = hashlib.sha256(ssl.PEM_cert_to_DER_cert(credentials.certificate)).hexdigest()
    path = place / "told.json"
    usual = os.umask(0o077)
    path.with_suffix(".new").write_text(json.dumps(told))
    os.umask(usual)
    path.with_suffix(".new").rename(path)


while os.environ.get("SLURM_PROCID") == os.environ.get("LATE_RANK", "none") and not (place / "come").exists():
    time.sleep(0.05)
# Not all options can be said in the environment.
options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
with BatchletRunner(**options) as runner, client_of(runner) as client:
    client.wait_for_workers(int(os.environ.get("WAIT_FOR_WORKERS", "1")), timeout=60)
    assert client.submit(sum, [1, 2, 3]).result() == 6
    tell(runner, client)
    while not (place / "go-on").exists():
        # Something to be seen in the task stream.
        client.gather(client.map(lambda x: x + 1, range(8), pure=False))
        time.sleep(0.5)
    numbers = client.gather(client.map(lambda x: x * x, range(100), pure=False))
    sys.stdout.write(f"RESULT {json.dumps([sum(numbers), len(client.scheduler_info(n_workers=-1)['workers'])])}\n")

"""A cluster of submitted jobs that stands still to be attacked, and then shows that it still works.

Arguments: a directory; options as JSON. It writes the cluster's secrets into a file there, for the test's eyes only.
"""

import hashlib
import json
import os
import ssl
import sys
import time
from pathlib import Path

from batchlet import BatchletCluster

place = Path(sys.argv[1])


def tell(cluster):
    credentials, secret = cluster.keeper.credentials, cluster.keeper.secret
    told = {
        "dashboard": cluster.dashboard_link,
        "scheduler": cluster.scheduler_address,
        "hub": cluster.keeper._hub.port,
        "token": cluster._token,
        "secret": secret,
        "jobs": [job.job_id for job in cluster.jobs],
        "pem": credentials.certificate + credentials.key,
        "key": credentials.key,
        "fingerprint": hashlib.sha256(ssl.PEM_cert_to_DER_cert(credentials.certificate)).hexdigest(),
    }
    path = place / "told.json"
    usual = os.umask(0o077)
    path.with_suffix(".new").write_text(json.dumps(told))
    os.umask(usual)
    path.with_suffix(".new").rename(path)


with BatchletCluster("slurm", **json.loads(sys.argv[2])) as cluster:
    while not all(job.job_id for job in cluster.jobs):
        time.sleep(0.05)
    tell(cluster)
    client = cluster.get_client()
    client.wait_for_workers(2)
    (place / "up").touch()
    while not (place / "go-on").exists():
        # Something to be seen in the task stream.
        client.gather(client.map(lambda x: x + 1, range(8), pure=False))
        time.sleep(0.5)
    numbers = client.gather(client.map(lambda x: x * x, range(100), pure=False))
    states = sorted(job.state for job in cluster.jobs)
    sys.stdout.write(f"RESULT {json.dumps([sum(numbers), len(cluster.scheduler.workers), states])}\n")
    client.close()

"""What our processes change about Tornado's default TLS context: when it is made, and nothing else."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, socket, ssl
from batchlet.dask_backend import tls
from batchlet.dask_backend.compat.tls_connections import defer_authorities
from batchlet.security import Credentials

defer_authorities()
from distributed import Scheduler, Worker
from tornado import iostream, netutil
from tornado.httpclient import AsyncHTTPClient

credentials = Credentials.generate()
security = tls.RunSecurity(credentials, node_links=False)
# Before Tornado 6.6 it is made when Tornado is imported.
made = getattr(netutil._client_ssl_defaults, "cache_info", None)

async def refused(attempt):
    try:
        await attempt
    except ssl.SSLCertVerificationError:
        return True

async def main():
    async with Scheduler(port=0, dashboard_address="127.0.0.1:0", host="tls://127.0.0.1", security=security) as scheduler:
        async with Worker(scheduler.address, security=security, nthreads=1):
            assert len(scheduler.workers) == 1
    assert made is None or made().currsize == 0, "connections of Dask's have read the certificates of all authorities"
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=credentials.context(ssl.Purpose.CLIENT_AUTH))
    address = server.sockets[0].getsockname()
    stream = iostream.SSLIOStream(socket.socket())
    assert await refused(stream.connect(address, server_hostname="localhost"))
    assert await refused(AsyncHTTPClient().fetch(f"https://127.0.0.1:{address[1]}/"))
    assert made is None or made().currsize == 1
    print("as ever")

asyncio.run(main())
"""


def test_a_stranger_is_still_refused_by_default() -> None:
    """Dask's own connections read no authorities' certificates; others do, and trust nobody else."""
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "as ever\n"), result.stderr

"""What another user of the machine tries on the ports of a run. Standard library only: that user cannot read our Python's.

Reads a JSON object from standard input: ``targets`` (host, port and what the port is called), ``dask`` (what a Dask client
says, base64; ``@NAME@`` in it is the target's name, of the same length), ``foreign`` (a certificate and its key in PEM),
``paths`` (of HTTP), ``patience`` (seconds that an answer may take; otherwise `PATIENCE`). Writes one JSON list: an object for
each attack, with what came back.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# A machine that is busy is slow to answer; most attacks end at once, since the other side hangs up.
PATIENCE = 1.5
# Who has begun to answer goes on at once.
MORE = 0.5
MOST = 1 << 16
WEBSOCKET = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


def tls(pem: str = "") -> ssl.SSLContext:
    """Make a context that accepts whatever certificate the other side has, and shows this one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if pem:
        descriptor = os.memfd_create("pem")
        os.write(descriptor, pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)
    return context


def ask(
    host: str, port: int, data: bytes, context: ssl.SSLContext | None = None, patience: float = PATIENCE
) -> tuple[bytes, str]:
    """Send something and give all that comes back until the other side hangs up or is silent, and how it ended."""
    answer = b""
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, port), PATIENCE))
            connection.settimeout(patience)
            if context is not None:
                connection = stack.enter_context(context.wrap_socket(connection))
            connection.sendall(data)
            while len(answer) < MOST:
                part = connection.recv(MOST)
                if not part:
                    return answer, "end"
                answer += part
                connection.settimeout(MORE)
                if data.startswith((b"GET ", b"POST ", b"HEAD ", b"PUT ")) and complete(answer):
                    return answer, "complete"
    except OSError as error:
        return answer, f"{type(error).__name__}: {error}"
    return answer, "much"


def complete(answer: bytes) -> bool:
    """Whether an HTTP answer is all there."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    # Tornado's own "404 Not Found" has neither a body nor a length.
    return b" 101 " in head[:20] or b" 404 " in head[:20] or (length is not None and len(body) >= int(length[1]))


def get(path: str, method: str = "GET", more: str = "") -> bytes:
    body = "{}" if method in ("POST", "PUT") else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{more}\r\n{body}"
    ).encode()


def attack(host: str, port: int, name: str, orders: dict) -> list[dict]:
    """Try everything on one port."""
    found = []

    def note(how: str, result: tuple[bytes, str]) -> bytes:
        answer, end = result
        text = answer[:600].decode("latin-1")
        found.append({"target": name, "how": how, "size": len(answer), "answer": text, "end": end})
        return answer

    closed = note("nothing", (b"", "open"))
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), PATIENCE).close()
        closed = None
    if closed is not None:
        found[-1]["end"] = "closed"
        return found
    tries = []
    for kind, encoded in orders["dask"].items():
        data = base64.b64decode(encoded).replace(b"@NAME@", name.encode())
        for how, short, context in (
            ("plain", b"plain", None),
            ("tls without a certificate", b"tls-0", tls()),
            ("tls with a foreign certificate", b"tls-1", tls(orders["foreign"])),
            *((("tls with the certificate of the run", b"tls-2", tls(orders["own"])),) if orders.get("own") else ()),
        ):
            tries.append((f"dask {kind}, {how}", data.replace(b"@HOW@", short), context))
    tries.append(("garbage", os.urandom(3000), None))
    tries += [(f"{scheme} GET /", get("/"), context) for scheme, context in (("http", None), ("https", tls()))]
    patience = orders.get("patience") or PATIENCE
    ways = attempt(host, port, tries, note, patience)
    for scheme, context in (("http", None), ("https", tls())):
        if re.match(rb"HTTP/1.1 (?!400)", ways[f"{scheme} GET /"]):
            asked = [("GET", path) for path in orders["paths"]]
            asked += [(method, path) for method in ("HEAD", "POST", "PUT") for path in ("/", "/status", "/api/v1")]
            asked += [("POST", path) for path in orders["paths"] if path.startswith("/api/")]
            attempt(
                host, port, [(f"{scheme} {how} {path}", get(path, how), context) for how, path in asked], note, patience
            )
            attempt(host, port, websockets(host, port, scheme, orders, context, patience), note, patience)
    return found


def attempt(host: str, port: int, tries: list, note: Callable, patience: float) -> dict[str, bytes]:
    """Try several things side by side: the other side's patience is the longest part of it."""
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda each: ask(host, port, each[1], each[2], patience), tries))
    return {each[0]: note(each[0], result) for each, result in zip(tries, results, strict=True)}


def websockets(
    host: str, port: int, scheme: str, orders: dict, context: ssl.SSLContext | None, patience: float
) -> list:
    """Make the requests for those of Dask and Bokeh; Bokeh's needs a token that it writes into the page."""
    tries = []
    for path in orders["websockets"]:
        page, _ = ask(host, port, get(path.removesuffix("/ws")), context, patience)
        token = re.search(rb'"token":"([^"]+)"', page)
        more = f"Sec-WebSocket-Protocol: bokeh, {token[1].decode()}\r\n" if token else ""
        tries.append((f"{scheme} websocket {path}", WEBSOCKET.format(path=path, more=more).encode(), context))
    return tries


def main() -> None:
    orders = json.load(sys.stdin)
    if os.geteuid() == 0:
        raise SystemExit("this is to be run as another user")
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda target: attack(*target, orders), orders["targets"])
        json.dump([one for part in parts for one in part], sys.stdout)


if __name__ == "__main__":
    main()

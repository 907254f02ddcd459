"""The server of `calls.py`: one process that answers every chat completion alike after a fixed time.

    python calls_server.py REPLY.json

It takes a free port on loopback and prints it. `POST /control/begin` with `{"latency": S}` starts a new
record, `GET /control/record` gives it: the monotonic times at which requests came, were answered, and
were given up by a client that closed its connection.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
# Some clients try the endpoint with an empty message first. Every real request here is longer.
PROBE_BYTES = 1000


class Record:
    """What one run of one client looks like from here."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.arrivals = array("d")
        self.answers = array("d")
        self.gone = array("d")
        self.probes = 0
        self.connections = 0
        self.cpu = time.process_time()

    def as_json(self) -> bytes:
        found = {
            "arrivals": self.arrivals.tolist(),
            "answers": self.answers.tolist(),
            "gone": self.gone.tolist(),
            "probes": self.probes,
            "connections": self.connections,
            "cpu": time.process_time() - self.cpu,
        }
        return json.dumps(found).encode()


class Chat(asyncio.Protocol):
    """One connection. It writes to the record it was opened under, so that what a killed client leaves
    behind cannot count for the next one."""

    record = Record(0.0)
    response = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""
        self.waiting = 0
        self.closed = False
        self.mine = Chat.record
        self.mine.connections += 1
        self.later = asyncio.get_running_loop().call_later

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.mine.gone.extend([time.monotonic()] * self.waiting)

    def data_received(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            stop = end + 4 + length
            if len(self.data) < stop:
                return
            body, self.data = self.data[end + 4 : stop], self.data[stop:]
            if b" /control/" in head[:30]:
                self.control(head, body)
            elif length < PROBE_BYTES:
                self.mine.probes += 1
                self.transport.write(self.response)  # type: ignore[attr-defined]
            else:
                self.mine.arrivals.append(time.monotonic())
                self.waiting += 1
                self.later(self.mine.latency, self.answer)

    def answer(self) -> None:
        if self.closed:
            return
        self.waiting -= 1
        self.mine.answers.append(time.monotonic())
        self.transport.write(self.response)  # type: ignore[attr-defined]

    def control(self, head: bytes, body: bytes) -> None:
        reply = b"{}"
        if b"/control/begin" in head[:30]:
            Chat.record = Record(**json.loads(body))
        else:
            reply = Chat.record.as_json()
        self.transport.write(HEAD % (len(reply), reply))  # type: ignore[attr-defined]


async def serve(reply: bytes) -> None:
    Chat.response = HEAD % (len(reply), reply)
    server = await asyncio.get_running_loop().create_server(Chat, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the caller is gone


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve(Path(sys.argv[1]).read_bytes()))

"""Peak memory and CPU of `clair-apo build-pairs` over growing inputs, against a server on loopback.

    python benchmarks/build_memory.py --data ../shared/data --rows 2000 20000 60000

Each row is a real answer of `pairs_revision.parquet` under a prompt of its own; every reply has about
1,500 characters. Memory that is flat does not grow with the rows; CPU is that of the whole process, its
start, the calls and the tables included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

LATENCY = 0.02
REPLY = json.dumps(
    {
        "model": "m",
        "choices": [
            {
                "message": {
                    "role": "assistant",
                    "content": "{teacher_reasoning}: x\n\n{corrected_student_solution}:\n" + "word " * 300,
                },
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(REPLY),
    REPLY,
)


class Server(asyncio.Protocol):
    """The least that a client takes for a chat-completions server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length :]
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, RESPONSE)  # type: ignore[attr-defined]


def serve(port: Connection) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def write_rows(data: Path, out: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = pq.read_table(data / "pairs_revision.parquet").to_pylist()
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    with pq.ParquetWriter(out, schema) as writer:
        for begin in range(0, rows, 1000):
            part = [
                {"prompt": f"{n} {base[n % 200]['prompt']}", "response": base[n % 200]["rejected"]}
                for n in range(begin, min(begin + 1000, rows))
            ]
            writer.write_table(pa.Table.from_pylist(part, schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 20000])
    args = parser.parse_args()
    # A child begins with the peak of whoever starts it, so the tables are made in a process of their own.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    print(f"{'rows':>9} {'wall s':>8} {'CPU s':>8} {'CPU ms/row':>11} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            source = Path(folder) / "in.parquet"
            writing = context.Process(target=write_rows, args=(args.data, source, rows))
            writing.start()
            writing.join()
            flags = ["--input", source, "--output", Path(folder) / f"{rows}.parquet", "--reviser", "m"]
            flags += ["--reviser-url", url, "--concurrency", 200, "--quiet", "--json"]
            command = [sys.executable, "-m", "clair_apo.cli", "build-pairs", *map(str, flags)]
            begun = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            cpu = usage.ru_utime + usage.ru_stime
            print(
                f"{rows:>9,} {time.monotonic() - begun:>8.1f} {cpu:>8.1f} {1000 * cpu / rows:>11.2f} "
                f"{usage.ru_maxrss / 1024:>9.0f}",
                flush=True,
            )
    server.terminate()


if __name__ == "__main__":
    main()

"""Calls to a chat endpoint on loopback: `clair-apo build-pairs` beside what people use today.

    python benchmarks/calls.py                        # every tool, every cell: about 10 minutes
    python benchmarks/calls.py --tools clair-apo,openai --cells 200,0.2,2000 --repeat 3 --json calls.json

A cell is `in flight, seconds a call takes, rows`. Every tool sends the same revision requests (about 4.7 KB
of real text) to one server of ours on the same cores, which answers each with the same revision of about
1,500 characters and notes when. The server's notes give the rates; what a tool does beside the calls is in
`overall` and `CPU`: for clair-apo parsing, checks, durable recording and the tables, for curator and
distilabel their own data sets, for the others one JSONL line an answer.

Peers get virtual environments of their own under --envs, made when first wanted; remove a folder there to
get newer versions. Afterwards, where the system lets us, the whole run leaves the network but for loopback.
Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import fcntl
import http.client
import json
import multiprocessing
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from calls_peers import Environments, environment, last_line, say

HERE = Path(__file__).resolve().parent
CELLS = "200,0.2,2000 1000,0.2,10000 1000,5.0,8000"
# The versions that matter, of those in an environment.
SHOWN = ("clair-apo", "openai", "bespokelabs-curator", "distilabel", "uvloop")
SHOWN += ("httpx-aiohttp", "httpx", "httpx2", "aiohttp")
# Each tool and the environment it runs in; "here" is the one that runs this script.
TOOLS = {
    "clair-apo": "here",
    "openai": "openai",
    "openai-aiohttp": "openai",
    "curator": "curator",
    "distilabel": "distilabel",
    "httpx-aiohttp": "here",
    "aiohttp": "here",
}


class Cell(NamedTuple):
    in_flight: int
    latency: float
    rows: int

    @property
    def ideal(self) -> float:
        return self.in_flight / self.latency


@dataclass
class Process:
    """What a tool's process tree took."""

    begun: float
    wall: float = 0.0
    cpu: float = 0.0
    rss: float = 0.0  # bytes, the sum over its processes
    processes: int = 1
    code: int | None = None  # None: killed at its time limit
    others: float = 0.0  # cores that neither the tool nor the server used


def only_loopback() -> bool:
    """Leaves the network but for a loopback of our own: tools count their users and look for news."""
    if ctypes.CDLL(None).unshare(0x40000000) != 0:  # CLONE_NEWNET
        return False
    with socket.socket() as any_socket:  # SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))
    return True


def write_inputs(data: Path, folder: Path, counts: Sequence[int]) -> None:
    """The rows as Parquet and as JSONL for each count, the template's text and the server's reply.

    Each prompt is a number, a real question with its answer, and the next question: a second turn.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clair_apo.build import templates

    base = pq.read_table(data / "pairs_revision.parquet").to_pylist()
    rows = []
    for n in range(max(counts)):
        before, now = base[n % len(base)], base[(n + 1) % len(base)]
        prompt = f"{n} {before['prompt']}\n\n{before['rejected']}\n\n{now['prompt']}"
        rows.append({"prompt": prompt, "response": now["rejected"]})
    for count in counts:
        pq.write_table(pa.Table.from_pylist(rows[:count]), folder / f"{count}.parquet")
        with (folder / f"{count}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:count])
    (folder / "template.json").write_text(json.dumps(templates.load("paper").text), "utf-8")
    revision = min((row["chosen"] for row in base), key=lambda text: abs(len(text) - 1500))
    content = "{teacher_reasoning}: x\n\n{corrected_student_solution}:\n" + revision
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1100, "completion_tokens": 350, "total_tokens": 1450}
    reply = {"id": "r", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    (folder / "reply.json").write_text(json.dumps({**reply, "usage": usage}), "utf-8")


class Server:
    def __init__(self, python: str, reply: Path) -> None:
        command = [python, "-P", str(HERE / "calls_server.py"), str(reply)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout
        port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{port}/v1"
        # One connection for good: it stands in no record but the first.
        self.control = http.client.HTTPConnection("127.0.0.1", port)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        self.control.request(method, f"/control/{path}", json.dumps(body))
        return json.loads(self.control.getresponse().read())

    def close(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()


def command_of(tool: str, python: str, url: str, cell: Cell, inputs: Path, folder: Path) -> list[str]:
    if tool == "clair-apo":
        flags = ["--input", inputs / f"{cell.rows}.parquet", "--output", folder / "pairs.parquet"]
        flags += ["--reviser", "m", "--reviser-url", url, "--template", "paper"]
        flags += ["--concurrency", cell.in_flight, "--quiet", "--json"]
        return [python, "-m", "clair_apo.cli", "build-pairs", *map(str, flags)]
    flags = [tool, "--url", url, "--rows", inputs / f"{cell.rows}.jsonl"]
    flags += ["--template", inputs / "template.json", "--in-flight", cell.in_flight, "--folder", folder]
    return [python, "-P", str(HERE / "calls_peers.py"), *map(str, flags)]


def run(command: list[str], folder: Path, limit: float) -> Process:
    """Runs a tool in a process group of its own and kills what is left of it at its end or limit."""
    busy = busy_seconds()
    with (folder / "log").open("wb") as log:
        found = Process(begun=time.monotonic())
        child = subprocess.Popen(
            command,
            env=environment(folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    group, look = child.pid, found.begun
    try:
        while True:
            pid, status, usage = os.wait4(group, os.WNOHANG)
            now = time.monotonic()
            if pid:
                found.code = child.returncode = os.waitstatus_to_exitcode(status)
                found.wall, found.cpu = now - found.begun, usage.ru_utime + usage.ru_stime
                found.rss = max(found.rss, usage.ru_maxrss * 1024)
                break
            if now - found.begun > limit:
                found.wall = now - found.begun
                break
            if now >= look:
                rss, processes = size_of(group)
                found.rss, found.processes = max(found.rss, rss), max(found.processes, processes)
                look = now + 0.5
            time.sleep(0.02)
    finally:
        if size_of(group)[1]:
            os.killpg(group, signal.SIGKILL)
        # We adopt the orphans of our children, so none of their time is lost.
        while True:
            try:
                _, status, usage = os.wait4(-group, 0)
            except ChildProcessError:
                break
            found.cpu += usage.ru_utime + usage.ru_stime
            found.rss = max(found.rss, usage.ru_maxrss * 1024)
            child.returncode = status
    found.others = (busy_seconds() - busy - found.cpu) / found.wall
    return found


def size_of(group: int) -> tuple[int, int]:
    """Resident bytes of a process group, and how many processes it has."""
    total = processes = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group:
            total += int(fields[21]) * resource.getpagesize()
            processes += 1
    return total, processes


def busy_seconds() -> float:
    """Seconds of all cores that were not idle."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def middle_rate(answers: Sequence[float], latency: float) -> float | None:
    """Answers a second between the 10 % and the 90 % one; None where that is less than a call takes."""
    low, high = len(answers) // 10, len(answers) * 9 // 10
    if high >= len(answers) or answers[high] - answers[low] < latency:
        return None
    return (high - low) / (answers[high] - answers[low])


def figures(record: dict[str, Any], process: Process, cell: Cell) -> dict[str, Any]:
    """What one run came to. Times are seconds, memory MiB."""
    arrivals, answers = record["arrivals"], sorted(record["answers"])
    changes = [(time, 1) for time in arrivals] + [(time, -1) for time in answers + record["gone"]]
    now = most = 0
    reached = None
    for moment, change in sorted(changes):
        now += change
        most = max(most, now)
        if reached is None and now >= cell.in_flight:
            reached = moment - arrivals[0]
    rate, calls = middle_rate(answers, cell.latency), len(arrivals)
    return {
        "rate": rate,
        "of_ideal": rate and rate / cell.ideal,
        "rate_first_to_last": calls and answers and len(answers) / (answers[-1] - arrivals[0]),
        "rate_overall": len(answers) / process.wall,
        "until_first_request": arrivals[0] - process.begun if calls else None,
        "until_full": reached,
        "in_flight_max": most,
        "cpu_ms": 1000 * process.cpu / calls if calls else None,
        "peak_mib": process.rss / 2**20,
        "processes": process.processes,
        "requests": calls,
        "answers": len(answers),
        "probes": record["probes"],
        "connections": record["connections"],
        "wall": process.wall,
        "server_cpu_ms": 1000 * record["cpu"] / calls if calls else None,
        "others_cores": max(0.0, process.others - record["cpu"] / process.wall),
        "finished": process.code is not None,
        "code": process.code,
    }


def one_run(
    tool: str, cell: Cell, server: Server, envs: Environments, inputs: Path, limit: float
) -> dict[str, Any]:
    name = TOOLS[tool]
    if name in envs.missing:
        return {"tool": tool, "note": f"not installed: {envs.missing[name]}"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        folder = Path(home)
        server.ask("POST", "begin", {"latency": cell.latency})
        process = run(command_of(tool, envs.python[name], server.url, cell, inputs, folder), folder, limit)
        found = {"tool": tool, **figures(server.ask("GET", "record"), process, cell)}
        summary = folder / "pairs.run" / "summary.json"
        if summary.is_file():
            counts = json.loads(summary.read_text("utf-8"))
            found["summary"] = {key: counts.get(key) for key in ("rows_in", "kept", "unchanged", "failed")}
        if not found["finished"]:
            found["note"] = f"not finished: {found['answers']:,} answers in {process.wall:.0f} s"
        elif process.code or found["answers"] < cell.rows:
            why = last_line((folder / "log").read_text("utf-8", "replace"))
            found["note"] = f"exit {process.code}, {found['answers']:,} answers: {why}"
        elif summary.is_file() and found["summary"]["failed"]:
            found["note"] = f"{found['summary']['failed']:,} rows failed"
    return found


COLUMNS = [
    ("req/s", "rate", ",.0f"),
    ("% of ideal", "of_ideal", ".0%"),
    ("overall", "rate_overall", ",.0f"),
    ("first s", "until_first_request", ".2f"),
    ("CPU ms", "cpu_ms", ".2f"),
    ("peak MiB", "peak_mib", ",.0f"),
    ("max", "in_flight_max", ",d"),
    ("full s", "until_full", ".2f"),
    ("requests", "requests", ",d"),
    ("others", "others_cores", ".1f"),
]
LEGEND = """\
req/s       between the 10 % and the 90 % answer, as the server sees them; ideal is in flight / latency
overall     answers a second from the start of the process to its end
first s     from the start of the process to its first request
CPU ms      of the whole process tree, for each call, start-up included
peak MiB    resident, summed over the tool's processes, shared pages in each
max, full s most calls in flight, and seconds from the first request until all were; "-": never
requests    that the server took, retries included
others      cores that neither the tool nor the server used: noise of other work"""


def table(cell: Cell, runs: list[dict[str, Any]]) -> str:
    """One line a tool; with several runs its best and its median one."""
    # What a client that loses no time would read: answers come in waves, which the two marks may cut.
    waves = [(1 + n // cell.in_flight) * cell.latency for n in range(cell.rows)]
    reads = middle_rate(waves, cell.latency * 0.999)
    lines = []
    for tool in dict.fromkeys(run["tool"] for run in runs):
        mine = sorted((run for run in runs if run["tool"] == tool), key=lambda run: -(run.get("rate") or 0))
        shown = [(tool, mine[0])]
        if len(mine) > 1 and "rate" in mine[0]:
            shown = [(f"{tool} best", mine[0]), (f"{tool} median", mine[len(mine) // 2])]
        for name, run in shown:
            cells = []
            for _, key, spec in COLUMNS:
                value = run.get(key)
                cells.append("-" if value is None else format(value, spec))
            lines.append([name, *cells, run.get("note", "")])
    head = ["", *(title for title, _, _ in COLUMNS), ""]
    widths = [max(len(line[at]) for line in [head, *lines]) for at in range(len(head) - 1)]
    texts = []
    for line in [head, *lines]:
        body = "  ".join(f"{text:>{width}}" for text, width in zip(line[1:-1], widths[1:], strict=True))
        texts.append(f"{line[0]:<{widths[0]}}  {body}  {line[-1]}".rstrip())
    title = (
        f"{cell.in_flight:,} in flight, {cell.latency:g} s, {cell.rows:,} rows: ideal {cell.ideal:,.0f}/s"
    )
    if reads and abs(reads / cell.ideal - 1) > 0.01:
        title += f" (a client that loses no time reads {reads:,.0f}/s)"
    return "\n".join([title, *texts])


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def cell_of(text: str) -> Cell:
    in_flight, latency, rows = text.split(",")
    return Cell(int(in_flight), float(latency), int(rows))


def tools_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in TOOLS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(TOOLS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=tools_of, default=list(TOOLS), metavar="A,B", help=", ".join(TOOLS))
    parser.add_argument("--cells", type=cell_of, nargs="+", metavar="N,S,ROWS", help=f"default: {CELLS}")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each tool; best and median are shown"
    )
    parser.add_argument("--limit", type=float, default=150, help="seconds after which a tool is killed")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--envs", type=Path, default=HERE / ".envs", help="where peers are installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run's figures and the versions")
    args = parser.parse_args()
    cells = args.cells or [cell_of(text) for text in CELLS.split()]

    envs = Environments(args.envs.resolve())
    names = ["server", *dict.fromkeys(TOOLS[tool] for tool in args.tools)]
    for name in names:
        if name != "here":
            envs.install(name)
    if "server" in envs.missing:
        say(f"the server runs without uvloop: {envs.missing['server']}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no tool is left behind
    # A thousand connections want more files than many shells allow.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if not only_loopback():
        say("the network cannot be left (no rights): what the tools send out is up to their settings")
    for name in names:
        envs.look(name)

    print(f"{cpu_model()}, {os.cpu_count()} cores; Python {platform.python_version()}")
    for name, found in envs.versions.items():
        print(f"  {name}: {', '.join(f'{shown} {found[shown]}' for shown in SHOWN if shown in found)}")
    print(LEGEND, flush=True)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        # A child begins with the peak of whoever starts it, so the tables are made in another process.
        inputs = Path(home)
        counts = sorted({cell.rows for cell in cells})
        writing = multiprocessing.get_context("spawn").Process(
            target=write_inputs, args=(args.data.resolve(), inputs, counts)
        )
        writing.start()
        writing.join()
        if writing.exitcode:
            sys.exit("the rows could not be written")
        server_python = sys.executable if "server" in envs.missing else envs.python["server"]
        server = Server(server_python, inputs / "reply.json")
        try:
            for cell in cells:
                runs = []
                for _ in range(args.repeat):  # in turns, so that noise hits every tool alike
                    for tool in args.tools:
                        say(f"{cell.in_flight}, {cell.latency:g} s, {cell.rows:,} rows: {tool} …")
                        runs.append(one_run(tool, cell, server, envs, inputs, args.limit))
                print(f"\n{table(cell, runs)}", flush=True)
                results.append({**cell._asdict(), "ideal": cell.ideal, "runs": runs})
        finally:
            server.close()
    if args.json:
        found = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": envs.versions,
            "not_installed": envs.missing,
            "cells": results,
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

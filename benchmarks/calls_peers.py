"""The peers of `calls.py`: how they are installed, and what is run in each one's own environment.

    python calls_peers.py TOOL --url URL --rows ROWS.jsonl --template FILE --in-flight N --folder DIR

sends every row once and writes every answer down. The loops are the script that people write: all rows
as tasks, a semaphore, one JSONL line an answer. At its top this file takes the standard library alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# requests: distilabel imports it without asking for it.
REQUIREMENTS = {
    "server": ["uvloop"],
    "openai": ["openai[aiohttp]"],
    "curator": ["bespokelabs-curator"],
    "distilabel": ["distilabel[openai]", "requests"],
}
IMPORTS = {
    "server": "uvloop",
    "openai": "openai, aiohttp",
    "curator": "bespokelabs.curator",
    "distilabel": "distilabel.pipeline",
    "here": "aiohttp, httpx_aiohttp",
}
# Nothing is to be reported or fetched, and no display to be drawn.
QUIET = {
    "TELEMETRY_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "127.0.0.1",
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word of why"


def environment(home: Path | str) -> dict[str, str]:
    """The variables of a tool: nothing of ours that changes where it calls or what it keeps."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("OPENAI_", "HF_"))
    }
    return {**kept, **QUIET, "HOME": str(home), "XDG_CACHE_HOME": str(home)}


@dataclass
class Environments:
    """The interpreters, and why one is not there."""

    folder: Path
    python: dict[str, str] = field(default_factory=lambda: {"here": sys.executable})
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def install(self, name: str) -> None:
        """Makes the environment, unless it is there with these very requirements."""
        home, wanted = self.folder / name, " ".join(REQUIREMENTS[name])
        python, done = home / "bin" / "python", home / "requirements.txt"
        self.python[name] = str(python)
        if done.is_file() and done.read_text() == wanted:
            return
        say(f"installing {wanted} in {home} …")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")
        shutil.rmtree(home, ignore_errors=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", str(home)], pip + REQUIREMENTS[name]):
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                self.missing[name] = last_line(ended.stdout + ended.stderr)
                return
        done.write_text(wanted)

    def look(self, name: str) -> None:
        """Tries the imports and reads the versions."""
        if name in self.missing:
            return
        code = (
            f"import {IMPORTS[name]}, json, importlib.metadata as m\n"
            "print('\\n' + json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
        )
        with tempfile.TemporaryDirectory() as home:
            ended = subprocess.run(
                [self.python[name], "-c", code], capture_output=True, text=True, env=environment(home)
            )
        if ended.returncode:
            self.missing[name] = last_line(ended.stderr)
        else:
            self.versions[name] = json.loads(last_line(ended.stdout))


MODEL = "m"
SECONDS = 600  # the time-out of a call, far from every latency that is measured
MAX_TOKENS = 2048
Messages = list[dict[str, str]]
Ask = Callable[[Messages], Awaitable[str]]


class Job:
    """The flags, and the rows as each tool wants them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.url: str = args.url
        self.in_flight: int = args.in_flight
        self.folder: Path = args.folder
        self.rows: list[dict[str, str]] = [json.loads(line) for line in args.rows.open(encoding="utf-8")]
        self.template: str = json.loads(args.template.read_text("utf-8"))

    def messages(self, row: dict[str, str]) -> Messages:
        # One side of a split is filled before the other is joined: answers may hold a placeholder's text.
        before, _, rest = self.template.partition("{prompt}")
        between, _, after = rest.partition("{response}")
        text = before + row["prompt"] + between + row["response"] + after
        return [{"role": "user", "content": text}]

    async def loop(self, ask: Ask) -> None:
        """Every row once, `in_flight` at a time."""
        places = asyncio.Semaphore(self.in_flight)
        with (self.folder / "answers.jsonl").open("w", encoding="utf-8") as out:

            async def one(number: int, row: dict[str, str]) -> None:
                async with places:
                    reply = await ask(self.messages(row))
                out.write(json.dumps({"row": number, "reply": reply}, ensure_ascii=False) + "\n")

            await asyncio.gather(*(one(number, row) for number, row in enumerate(self.rows)))


def openai(job: Job, *, over_aiohttp: bool = False) -> None:
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async def run() -> None:
        http = DefaultAioHttpClient() if over_aiohttp else None
        async with AsyncOpenAI(
            base_url=job.url, api_key="none", timeout=SECONDS, http_client=http
        ) as client:

            async def ask(messages: Messages) -> str:
                reply = await client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore
                return reply.choices[0].message.content or ""

            await job.loop(ask)

    asyncio.run(run())


def openai_aiohttp(job: Job) -> None:
    openai(job, over_aiohttp=True)


def httpx_aiohttp(job: Job) -> None:
    import httpx
    from httpx_aiohttp import HttpxAiohttpClient

    async def run() -> None:
        limits = httpx.Limits(max_connections=job.in_flight, max_keepalive_connections=job.in_flight)
        async with HttpxAiohttpClient(timeout=SECONDS, limits=limits) as client:

            async def ask(messages: Messages) -> str:
                body = {"model": MODEL, "messages": messages}
                reply = await client.post(f"{job.url}/chat/completions", json=body)
                reply.raise_for_status()
                return str(reply.json()["choices"][0]["message"]["content"])

            await job.loop(ask)

    asyncio.run(run())


def aiohttp(job: Job) -> None:
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    async def run() -> None:
        connector, timeout = TCPConnector(limit=0), ClientTimeout(total=SECONDS)
        async with ClientSession(connector=connector, timeout=timeout, raise_for_status=True) as client:

            async def ask(messages: Messages) -> str:
                body = {"model": MODEL, "messages": messages}
                async with client.post(f"{job.url}/chat/completions", json=body) as reply:
                    return str((await reply.json())["choices"][0]["message"]["content"])

            await job.loop(ask)

    asyncio.run(run())


def curator(job: Job) -> None:
    from importlib.util import find_spec

    # Its token counter would be downloaded; litellm carries the same file along.
    spec = find_spec("litellm")
    assert spec is not None
    tokenizers = Path(str(spec.origin)).parent / "litellm_core_utils" / "tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(tokenizers)
    from bespokelabs import curator as tool

    class Clair(tool.LLM):
        def prompt(self, row: dict[str, Any]) -> Any:
            return job.messages(row)

        def parse(self, row: dict[str, Any], reply: Any) -> dict[str, Any]:
            _, _, revision = str(reply).partition("{corrected_student_solution}:")
            return {**row, "revision": revision.strip()}

    asker = Clair(
        model_name=MODEL,
        backend="openai",
        backend_params={
            "base_url": job.url,
            "api_key": "none",
            "request_timeout": SECONDS,
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 1_000_000_000_000,
            "max_concurrent_requests": job.in_flight,
        },
    )
    asker(job.rows, working_dir=str(job.folder / "curator"))


def distilabel(job: Job) -> None:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import CLAIR

    # A step waits for its whole batch, so a batch as large as what is to be in flight is its best case.
    rows = [{"task": row["prompt"], "student_solution": row["response"]} for row in job.rows]
    model = OpenAILLM(
        model=MODEL,
        base_url=job.url,
        api_key="none",
        timeout=SECONDS,
        generation_kwargs={"max_new_tokens": MAX_TOKENS},
    )
    with Pipeline("calls", cache_dir=job.folder / "distilabel") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=job.in_flight)
        load >> CLAIR(llm=model, input_batch_size=job.in_flight)
    pipeline.run(use_cache=False)


PEERS: dict[str, Callable[[Job], None]] = {
    "openai": openai,
    "openai-aiohttp": openai_aiohttp,
    "curator": curator,
    "distilabel": distilabel,
    "httpx-aiohttp": httpx_aiohttp,
    "aiohttp": aiohttp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=PEERS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--template", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    PEERS[args.tool](Job(args))


if __name__ == "__main__":
    main()

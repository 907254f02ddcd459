"""The endpoint client: URLs, keys, proxies of the environment, and retries."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from clair_apo.errors import ClairError, StoppedEarly, UsageError
from clair_apo.llm.chat import CallFailed, Request, Sent, interpret
from clair_apo.llm.endpoint import Endpoint, EndpointClient, normal_url
from clair_apo.llm.secrets import shown_url
from loopback import Answer, Loopback, error

REQUEST = Request("m", [{"role": "user", "content": "hi"}], {"temperature": 0.5})


def send(endpoint: Endpoint) -> Sent:
    async def once() -> Sent:
        client = EndpointClient(endpoint)
        try:
            return await client.send(REQUEST)
        finally:
            await client.close()

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://x:1/v1", "http://x:1/v1"),
        ("http://x:1/v1/", "http://x:1/v1"),
        ("https://x/v1/chat/completions", "https://x/v1"),
        ("https://x/v1/chat/completions/?a=b", "https://x/v1?a=b"),
        ("http://localhost:8000", "http://localhost:8000"),
    ],
)
def test_urls(given: str, used: str) -> None:
    assert normal_url(given) == used


@pytest.mark.parametrize("bad", ["localhost:8000", "ftp://x", "http://", "x"])
def test_no_urls(bad: str) -> None:
    with pytest.raises(UsageError, match="is not a URL"):
        normal_url(bad)


def test_a_shown_url_has_no_secret() -> None:
    assert shown_url("https://me:secret@x/v1?key=secret") == "https://x/v1?…"


def test_the_body_is_what_was_asked() -> None:
    with Loopback(lambda body, n: Answer("ok")) as server:
        sent = send(Endpoint(server.url))
        assert interpret(sent.raw).text == "ok"
        assert server.asked[0].body == {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0.5,
        }
        assert "Authorization" not in server.asked[0].headers


def test_retry_after_in_its_three_forms_is_waited_for() -> None:
    from email.utils import formatdate
    from time import monotonic, time

    def behave(body: object, n: int) -> Answer:
        headers: list[dict[str, str]] = [
            {"retry_after_ms": "300"},
            {"retry_after": "0.3"},
            {"retry_after": formatdate(time() + 1.5, usegmt=True)},
        ]
        return error(429, "slow", **headers[n]) if n < 3 else Answer("ok")

    with Loopback(behave) as server:
        begun = monotonic()
        assert send(Endpoint(server.url)).tries == 4
        assert monotonic() - begun > 0.3 + 0.3 + 0.4


def test_retries_end() -> None:
    with Loopback(lambda body, n: error(500, "broken")) as server:
        with pytest.raises(CallFailed) as caught:
            send(Endpoint(server.url, retries=1))
        assert (caught.value.kind, caught.value.tries, len(server.asked)) == ("http_5xx", 2, 2)
    with pytest.raises(CallFailed) as caught:
        send(Endpoint("http://127.0.0.1:9/v1", retries=0))
    assert caught.value.kind == "connection"


def test_what_another_try_cannot_mend_is_not_tried() -> None:
    with Loopback(lambda body, n: error(400, "bad")) as server:
        with pytest.raises(CallFailed) as caught:
            send(Endpoint(server.url))
        assert (caught.value.kind, len(server.asked)) == ("http_4xx", 1)
        server.behave = lambda body, n: error(401, "who?")
        with pytest.raises(StoppedEarly):
            send(Endpoint(server.url))


class _Proxy(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        _Proxy.seen.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"choices": [{"message": {"content": "by proxy"}, "finish_reason": "stop"}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert interpret(send(Endpoint("http://model.invalid/v1", retries=0)).raw).text == "by proxy"
        assert _Proxy.seen == ["http://model.invalid/v1/chat/completions"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with Loopback(lambda body, n: Answer("direct")) as server:
            assert interpret(send(Endpoint(server.url)).raw).text == "direct"
    finally:
        proxy.shutdown()


def test_the_certificates_of_the_environment_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "none.pem"
    missing.write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(missing))
    with pytest.raises(Exception, match=r"PEM|SSL|certificate|X509"):
        send(Endpoint("https://127.0.0.1:9/v1", retries=0))


def test_models_are_listed() -> None:
    async def listed(url: str) -> list[str]:
        client = EndpointClient(Endpoint(url))
        try:
            return await client.models()
        finally:
            await client.close()

    with Loopback(lambda body, n: Answer(), models=("a", "b")) as server:
        assert asyncio.run(listed(server.url)) == ["a", "b"]
    with pytest.raises(ClairError, match="cannot be read"):
        asyncio.run(listed("http://127.0.0.1:9/v1"))


def test_only_secrets_are_blanked() -> None:
    said = "Install ollama before 2024-02-01."

    def behave(body: object, n: int) -> Answer:
        return Answer(said)

    with Loopback(behave) as server:
        sent = send(Endpoint(f"{server.url}?api-version=2024-02-01", key="ollama"))
        assert interpret(sent.raw).text == said
        key = "k3y-\u0041bc-123456"
        server.behave = lambda body, n: Answer(
            body='{"choices": [{"message": {"content": "it is k3y-\\u0041bc-123456"},'
            ' "finish_reason": "stop"}]}'
        )
        assert interpret(send(Endpoint(server.url, key=key)).raw).text == "it is [key]"


def test_json_is_utf8_whatever_the_header_says() -> None:
    latin = {"Content-Type": "application/json; charset=ISO-8859-1"}
    with Loopback(lambda body, n: Answer("caf\u00e9", headers=latin)) as server:
        assert interpret(send(Endpoint(server.url)).raw).text == "caf\u00e9"

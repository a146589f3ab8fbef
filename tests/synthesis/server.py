"""A chat endpoint on 127.0.0.1 that answers as models do, the same for the same prompt, and misbehaves on demand."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from thalweg.synthesis.languages import SCRIPT_OF

WORDS = {
    "Latin": "river bridge stone water quiet harbour letter winter engine garden market signal copper island mirror",
    "Cyrillic": "река мост камень вода тихий гавань письмо зима мотор сад рынок сигнал медь остров зеркало",
    "Greek": "ποτάμι γέφυρα πέτρα νερό ήσυχο λιμάνι γράμμα χειμώνας μηχανή κήπος αγορά σήμα χαλκός νησί",
    "Han": "河流 桥梁 石头 水 安静 港口 信件 冬天 发动机 花园 市场 信号 铜 岛屿 镜子",
}


@dataclass(frozen=True)
class Request:
    """What was asked, and how often that prompt has come before."""

    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]
    seen: int
    time: float

    @property
    def chance(self) -> float:
        """From 0 to 1, the same for the same prompt."""
        return random.Random(f"chance {self.prompt}").random()


@dataclass
class Answer:
    """What to send.

    content: of the message; status, headers, body: of HTTP, body instead of a completion; wait: seconds before; drop:
    the connection, without a word.
    """

    content: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    wait: float = 0.0
    drop: bool = False
    finish: str = "stop"
    refusal: str | None = None
    usage: bool = True


Behaviour = Callable[[Request], Answer]


def good_fields(request: Request) -> dict[str, str]:
    """An example as the prompt wants it."""
    prompt = request.prompt
    names = re.findall(r'"(\w+)"', prompt.partition("with the keys")[2].partition(", all of them")[0])
    languages = re.findall(r"(?:values are|passage of two or three sentences|sentence|phrase) in (\w+)", prompt)
    rng = random.Random(prompt)
    long = {"short-long": {"positive", "hard_negative"}, "long-short": {"text"}, "long-long": {"input", "positive"}}
    passages = long.get(kind_of(prompt), set())
    least = int((re.findall(r"At least (\d+) words", prompt) or ["40"])[0])
    fields = {}
    for name in names:
        language = languages[0] if name in ("S1", "query", "input", "text") else languages[-1]
        words = WORDS[SCRIPT_OF[language]].split()
        text = " ".join(rng.choices(words, k=least if name in passages else 6))
        fields[name] = f"{text} {name[-1]}{rng.randrange(10**6)}"
    return fields


def kind_of(prompt: str) -> str:
    """The type of task that a prompt of the second step is about."""
    if '"misleading_label"' in prompt:
        return "long-short"
    if '"hard_negative"' in prompt:
        return "short-long"
    if '"S1"' in prompt:
        return "bitext" if "translates" in prompt else "sts"
    return "long-long" if "several paragraphs long" in prompt else "short-short"


def good_answer(request: Request) -> Answer:
    """A usable reply to either step."""
    match = re.match(r"Think of (\d+) different tasks", request.prompt)
    if match is None:
        return Answer(json.dumps(good_fields(request), ensure_ascii=False))
    rng = random.Random(request.prompt)
    words = WORDS["Latin"].split()
    return Answer(json.dumps([f"Given a {' '.join(rng.choices(words, k=6))}, find it" for _ in range(int(match[1]))]))


class Endpoint:
    """The server. `behave` may be exchanged at any time; `requests` are those that came."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def received(self, body: dict[str, Any], headers: dict[str, str]) -> Request:
        prompt = body["messages"][0]["content"]
        with self._lock:
            request = Request(prompt, body, headers, self._seen[prompt], time.monotonic())
            self._seen[prompt] += 1
            self.requests.append(request)
        return request

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def endpoint(behave: Behaviour = good_answer) -> Iterator[Endpoint]:
    server = Endpoint(behave)
    try:
        yield server
    finally:
        server.close()


def _handler(server: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, '{"error": {"message": "no such path"}}', {})
                return
            request = server.received(body, dict(self.headers))
            answer = server.behave(request)
            server.closing.wait(answer.wait)
            if answer.drop:
                self.close_connection = True
                return
            self._send(
                answer.status, _completion(request, answer) if answer.body is None else answer.body, answer.headers
            )

        def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
            content = body.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # a client that was killed, or had waited long enough
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _completion(request: Request, answer: Answer) -> str:
    message = {"role": "assistant", "content": answer.content}
    if answer.refusal is not None:
        message["refusal"] = answer.refusal
    completion: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": answer.finish}]}
    if answer.usage:
        usage = {"prompt_tokens": len(request.prompt.split()), "completion_tokens": len((answer.content or "").split())}
        completion["usage"] = usage
    return json.dumps(completion)

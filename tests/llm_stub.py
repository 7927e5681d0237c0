"""A server that speaks the protocol of a language model's endpoint and fails in every way that it is told to."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = json.dumps({"preferences": ["Find a b", "Find b c", "Find c d", "Find d e", "Find e f"]})
Behaviour = Callable[["Handler", str, int], bool]  # True: it has answered in its own way


@dataclass
class Stub:
    """A server; ``behaviours`` by question get how many times that question came before. paid: whole completions by question."""

    url: str = ""
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    paid: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        stub = self.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        with stub.lock:
            before = stub.seen[question]
            stub.seen[question] += 1
            stub.bodies.append(body)
            stub.keys.append(self.headers.get("Authorization"))
            stub.moments.append(time.monotonic())
            stub.at_once += 1
            stub.most_at_once = max(stub.most_at_once, stub.at_once)
        try:
            behaviour = stub.behaviours.get(question, stub.behaviours.get("*"))
            if behaviour is None or not behaviour(self, question, before):
                self.complete(question, GOOD)
        finally:
            with stub.lock:
                stub.at_once -= 1

    def complete(self, question: str, text: str) -> None:
        with self.stub.lock:
            self.stub.paid[question] += 1
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        reply = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
        self.send(200, json.dumps(reply).encode())

    def send(self, status: int, body: bytes, **headers: str) -> bool:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running_stub() -> Iterator[Stub]:
    found = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": found}))
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def first_times(count: int, behaviour: Behaviour) -> Behaviour:
    return lambda handler, question, before: before < count and behaviour(handler, question, before)


def said(text: str) -> Behaviour:
    def answer(handler: Handler, question: str, before: int) -> bool:
        handler.complete(question, text)
        return True

    return answer

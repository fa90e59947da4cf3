"""How long an answer pauses while large bodies come in: does anything hold up the others?

    python -m benchmarks.server_stalls MODEL [--mebibytes 30] [--only text,schema]

One client reads streams without end, in a process of its own, and notes when each piece comes.
Beside it bodies of some 30 MB are sent one after the other: texts, tokens, pictures, schemas,
tools, biases, and what is wrong in many ways. A row is a body: its size, the status and the seconds
until it was answered, and the pauses between pieces meanwhile: the median, and the longest. What a
body has the model do (reading prompts and pictures) is in its pauses too; bodies with * do that.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.server import HOST, free_port, running, text
from llama4_edge.system.cores import decoding_threads

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_SETTLE_SECONDS = 0.5
_WAIT_SECONDS = 300.0

_WATCHER = """
import http.client, json, sys, time
host, port = sys.argv[1], int(sys.argv[2])
body = json.dumps({"prompt": "Once", "max_tokens": 2000, "stream": True, "temperature": 1.5})
while True:
    connection = http.client.HTTPConnection(host, port)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    print("0", flush=True)
    while answer.read1():
        print(time.monotonic(), flush=True)
"""
"""Prints when each piece of its answers came, and 0 where one begins."""

Body = tuple[str, Any]
"""Where it is sent, and what is sent: bytes, or what is written as JSON."""


def message(content: object, **more: object) -> dict[str, Any]:
    """A request of one message, for a short answer."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **more}


def shaped(schema: object) -> dict[str, Any]:
    """A request for JSON of a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return message("Hello", response_format=form)


def properties(count: int, **more: object) -> dict[str, Any]:
    """A schema with so many properties."""
    named = {f"property {number}": {"type": "integer"} for number in range(count)}
    return {"type": "object", "properties": named, **more}


def picture(width: int, height: int) -> dict[str, Any]:
    """A picture of noise, which no encoder makes smaller."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def tool(number: int, description: str = "") -> dict[str, Any]:
    """A tool with a schema."""
    function = {"name": f"tool{number}", "description": description, "parameters": properties(20)}
    return {"type": "function", "function": function}


def bodies(size: int) -> Mapping[str, Callable[[], Body]]:
    """What is sent, by name; each is made when it is asked for.

    Args:
        size: bytes of one, about.
    """
    words = text(random.Random(1), 20_000)
    long = words * (size // len(words) + 1)
    side = int((size / 4) ** 0.5)
    return {
        "hello *": lambda: (_CHAT, message("Hello")),
        "text": lambda: (_CHAT, message(long)),
        "text, Anthropic's": lambda: ("/v1/messages/count_tokens", {"model": "x", **message(long)}),
        "text, Responses": lambda: ("/v1/responses", {"input": long}),
        "text to tokenize": lambda: ("/tokenize", {"content": long}),
        "text for a template": lambda: ("/apply-template", message(long)),
        "escapes": lambda: (_CHAT, message("\u00e9\n" * (size // 8))),
        "tokens": lambda: (_TEXT, {"prompt": [5] * (size // 3)}),
        "tokens to detokenize": lambda: ("/detokenize", {"tokens": [5] * 900_000}),
        "messages": lambda: (_CHAT, {"messages": message("x")["messages"] * (size // 40)}),
        "a picture *": lambda: (_CHAT, message([picture(side, side)])),
        "200 pictures": lambda: (_CHAT, message([picture(200, 180)] * 200)),
        "no picture": lambda: (_CHAT, message([
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * size}}])),
        "schema, open": lambda: (_CHAT, shaped(properties(5_000))),
        "schema, closed": lambda: (_CHAT, shaped(properties(5_000, additionalProperties=False))),
        "schema, huge": lambda: (_CHAT, shaped(properties(size // 45))),
        "schema, values": lambda: (_CHAT, shaped({"enum": [words[:9_000]] * (size // 9_000)})),
        "grammar": lambda: (_CHAT, message("Hello", grammar=f'root ::= "{"x" * size}"')),
        "expression": lambda: (_CHAT, message("Hello", regex="(ab|c)" * (size // 6))),
        "tools": lambda: (_CHAT, message("Hello", tools=[
            tool(number, words[: size // 128]) for number in range(128)])),
        "small tools": lambda: (_CHAT, message("Hello", tools=[tool(n) for n in range(5_000)])),
        "biases": lambda: (_CHAT, message("Hello", logit_bias={
            str(number): 1.0 for number in range(size // 14)})),
        "stop strings": lambda: (_CHAT, message("Hello", stop=["x" * (size // 64)] * 64)),
        "faults": lambda: (_CHAT, {"messages": [7] * (size // 3)}),
        "unknown fields": lambda: (_CHAT, message("Hello", **{
            f"field {number}": 1 for number in range(size // 18)})),
        "depth": lambda: (_CHAT, b"[" * size),
        "no JSON": lambda: (_CHAT, b'{"messages": ' + b'"\\u00e9' * (size // 7)),
        "one number": lambda: (_CHAT, b'{"seed": ' + b"7" * size + b"}"),
    }  # fmt: skip


class Watcher:
    """The client that reads, and when pieces came."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-c", _WATCHER, HOST, str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def ended(self) -> list[float]:
        """The pauses between pieces of one answer, in seconds, in order; it reads no more."""
        self._process.kill()
        output, _ = self._process.communicate()
        times = [float(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]
        return [later - sooner for sooner, later in pairwise(times) if sooner and later]


@contextmanager
def watched(port: int) -> Iterator[Watcher]:
    """A client that reads meanwhile."""
    watcher = Watcher(port)
    time.sleep(_SETTLE_SECONDS)
    try:
        yield watcher
    finally:
        time.sleep(_SETTLE_SECONDS)


def sent(port: int, path: str, body: bytes) -> tuple[str, float]:
    """The status of the answer, and the seconds until it was there."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_WAIT_SECONDS)
    begun = time.monotonic()
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        status = str(answer.status)
    except OSError as error:
        status = type(error).__name__
    finally:
        connection.close()
    return status, time.monotonic() - begun


def measure(port: int, name: str, make: Callable[[], Body]) -> None:
    """Send one body, and print its row."""
    path, value = make()
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    del value
    with watched(port) as watcher:
        status, seconds = sent(port, path, body)
    pauses = [1000 * pause for pause in watcher.ended()] or [float("nan")]
    cells = [name, f"{len(body) / 1e6:.1f}", status, f"{seconds:.2f}"]
    print(f"| {' | '.join(cells)} | {median(pauses):.1f} | {max(pauses):.0f} |", flush=True)


def main() -> None:
    """Send each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--mebibytes", type=int, default=30, help="of a body, about")
    parser.add_argument("--only", help="bodies whose names begin so, with commas")
    arguments = parser.parse_args()
    port = free_port()
    llama4 = str(Path(sys.executable).with_name("llama4"))
    threads = str(decoding_threads())
    command = [
        llama4,
        "serve",
        str(arguments.model),
        "--port",
        str(port),
        "-c",
        "8k",
        "-t",
        threads,
    ]
    print("| body | MB | status | seconds | pause, ms | longest |\n|---|---|---|---|---|---|")
    with running(command, port):
        for name, make in bodies(arguments.mebibytes << 20).items():
            if not arguments.only or name.startswith(tuple(arguments.only.split(","))):
                measure(port, name, make)


if __name__ == "__main__":
    main()

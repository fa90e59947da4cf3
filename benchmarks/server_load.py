"""Mixed traffic over HTTP for as long as one likes: is each request answered, and memory flat?

    python -m benchmarks.server_load [MODEL] [--minutes 60] [--people 24] [--parallel 4] [--seed 1]

So many people ask one server at random, in the protocols of OpenAI and Anthropic: questions whose
answers are known (those of the model in the box, which is converted unless a model is named; they
must come back as they did when nobody else asked), streams that are read slowly, long prompts that
begin alike, several answers, tools, schemas, probabilities, texts with echo, pictures; clients that
vanish in the middle of a body, a prompt or a stream; requests that are wrong; and bursts that are
more than the queue takes.

Every request must be answered, or refused with the status that it deserves: 429 with Retry-After
where too many wait. After each half minute all sequences must be free, and a line a minute says
what was seen, the resident memory, and that without what bounded caches keep (states of sequences,
tiles of pictures, responses; features of pictures, a few hundred kilobytes each, are still in it);
the last ones give the slopes of both over the second half of the time. At the end SIGTERM must end
the server with status 0. The exit status is 1 after anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.peer import OUT, ROOT
from benchmarks.server import HOST, free_port, is_healthy, text
from benchmarks.server_bodies import SCHEMA, TOOL, WRONG
from demo.training.lessons.picture import COLOURS, SHAPES, Picture
from demo.training.lessons.skills import NAMES, THINGS, TRAITS
from llama4_edge.system.cores import decoding_threads

_WAVE_SECONDS = 30.0
_REQUEST_SECONDS = 600.0
_FREE_SECONDS = 20.0
_MAX_QUEUE = 16
_MIB = 2**20
_CACHES = ("states_bytes", "picture_tiles_bytes", "responses_stored_bytes")

Act: TypeAlias = Callable[[random.Random], Awaitable[None]]
Body: TypeAlias = dict[str, Any]


class UnexpectedError(Exception):
    """An answer that nobody asked for."""


class RefusedError(Exception):
    """Too many wait: 429, which says when to come back."""


class Traffic:
    """Those who ask; ``seen`` counts what became of what they asked for."""

    def __init__(self, client: httpx.AsyncClient, n_ctx: int, *, pictures: bool) -> None:
        self._client, self._n_ctx = client, n_ctx
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self._known: dict[str, str] = {}
        self._shared = text(random.Random("shared"), n_ctx // 2)
        self._acts: list[Act] = [
            *[self._question] * 6, self._slow, self._long, self._long, self._several, self._tool,
            self._schema, self._logprobs, self._echo, self._vanished, self._vanished,
            self._vanished, self._half, self._wrong, self._wrong, self._too_long, self._looked,
            self._burst,
        ]  # fmt: skip
        if pictures:
            self._acts.append(self._picture)

    async def learn(self, count: int) -> None:
        """Ask some questions while nobody else does."""
        rng = random.Random("questions")
        for _ in range(count):
            words = " ".join(rng.sample([*NAMES, *THINGS, *TRAITS], rng.randint(2, 5)))
            question = f"Repeat: {words}"
            self._known[question] = await self._chat(question, stream=False)

    async def wave(self, seed: str, people: int, seconds: float) -> None:
        """Ask at random for that long, and wait for all of it."""
        until = time.monotonic() + seconds
        tasks = [self._person(random.Random(f"{seed} {n}"), until) for n in range(people)]
        await asyncio.gather(*tasks)

    async def _person(self, rng: random.Random, until: float) -> None:
        while time.monotonic() < until:
            act = rng.choice(self._acts)
            name = act.__name__.strip("_")
            try:
                await act(rng)
                self.seen[name] += 1
            except RefusedError:
                self.seen["refused"] += 1
                await asyncio.sleep(rng.random())
            except Exception as error:
                self.faults.append(f"{name}: {type(error).__name__}: {error}"[:400])

    # --- requests

    async def _post(self, path: str, body: Body) -> Any:
        answer = await self._client.post(path, json=body)
        _check(answer, 200)
        return answer.json()

    async def _events(self, path: str, body: Body, pause: float = 0.0) -> AsyncIterator[Any]:
        async with self._client.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                await answer.aread()
            _check(answer, 200)
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if event.get("error") or event.get("type") == "error":
                        raise UnexpectedError(f"a stream with an error: {event}")
                    yield event
                if pause:
                    await asyncio.sleep(pause)

    async def _chat(self, question: str, *, stream: bool, pause: float = 0.0) -> str:
        body: Body = {"messages": [_user(question)], "temperature": 0, "max_tokens": 64}
        if not stream:
            answer = await self._post("/v1/chat/completions", body)
            said: str = answer["choices"][0]["message"]["content"]
            return said
        pieces = []
        ended = False
        async for event in self._events("/v1/chat/completions", body, pause):
            for choice in event["choices"]:
                pieces.append(choice["delta"].get("content") or "")
                ended = ended or choice["finish_reason"] is not None
        if not ended:
            raise UnexpectedError("a stream that does not end")
        return "".join(pieces)

    async def _message(self, question: str, *, stream: bool) -> str:
        body: Body = {"messages": [_user(question)], "temperature": 0, "max_tokens": 64}
        body["model"] = "any"
        if not stream:
            answer = await self._post("/v1/messages", body)
            return "".join(block["text"] for block in answer["content"])
        kinds, pieces = [], []
        async for event in self._events("/v1/messages", body):
            kinds.append(event["type"])
            if event["type"] == "content_block_delta":
                pieces.append(event["delta"]["text"])
        if kinds[-1] != "message_stop":
            raise UnexpectedError("a message that does not stop")
        return "".join(pieces)

    async def _response(self, question: str, *, stream: bool) -> str:
        body: Body = {"input": question, "temperature": 0, "max_output_tokens": 64}
        if not stream:
            return _output_text(await self._post("/v1/responses", body))
        last: Any = None
        async for event in self._events("/v1/responses", body):
            last = event
        if last is None or last["type"] != "response.completed":
            raise UnexpectedError("a response that is not completed")
        return _output_text(last["response"])

    # --- what a person may do

    async def _question(self, rng: random.Random) -> None:
        question = rng.choice(list(self._known))
        way = rng.choice((self._chat, self._message, self._response))
        said = await way(question, stream=rng.random() < 0.5)
        if said != self._known[question]:
            raise UnexpectedError(f"{way.__name__}: {said!r} for {self._known[question]!r}")

    async def _slow(self, rng: random.Random) -> None:
        question = rng.choice(list(self._known))
        said = await self._chat(question, stream=True, pause=rng.random() * 0.2)
        if said != self._known[question]:
            raise UnexpectedError(f"{said!r} for {self._known[question]!r}")

    async def _long(self, rng: random.Random) -> None:
        n_tokens = int((self._n_ctx // 2) * rng.random() ** 2)
        document = self._shared[: n_tokens * 3] if rng.random() < 0.5 else text(rng, n_tokens)
        body = {"messages": [_user(f"{document} Hello")], "max_tokens": rng.randrange(1, 30)}
        answer = await self._post("/v1/chat/completions", body)
        if answer["choices"][0]["finish_reason"] not in ("stop", "length"):
            raise UnexpectedError(f"finish_reason {answer['choices'][0]['finish_reason']}")

    async def _several(self, rng: random.Random) -> None:
        body = {"messages": [_user("Hello")], "n": 3, "max_tokens": 20, "seed": rng.randrange(9**9)}
        answer = await self._post("/v1/chat/completions", body)
        if [choice["index"] for choice in answer["choices"]] != [0, 1, 2]:
            raise UnexpectedError("not three answers")

    async def _tool(self, rng: random.Random) -> None:
        body = {
            "messages": [_user("Light in the kitchen, please.")], "tools": [TOOL],
            "tool_choice": "required", "max_tokens": 100, "seed": rng.randrange(9**9),
        }  # fmt: skip
        answer = await self._post("/v1/chat/completions", body)
        choice = answer["choices"][0]
        if choice["finish_reason"] == "length":
            return
        arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
        if arguments["room"] not in ("kitchen", "garage") or not isinstance(arguments["on"], bool):
            raise UnexpectedError(f"arguments {arguments}")

    async def _schema(self, rng: random.Random) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}}
        body = {
            "messages": [_user("How many?")], "response_format": form, "max_tokens": 100,
            "seed": rng.randrange(9**9),
        }  # fmt: skip
        answer = await self._post("/v1/chat/completions", body)
        choice = answer["choices"][0]
        if choice["finish_reason"] == "length":
            return
        if not 1 <= json.loads(choice["message"]["content"])["count"] <= 9:
            raise UnexpectedError(f"not as the schema says: {choice['message']['content']}")

    async def _logprobs(self, rng: random.Random) -> None:
        body = {
            "messages": [_user("Hello")], "logprobs": True, "top_logprobs": rng.randrange(6),
            "max_tokens": 10,
        }  # fmt: skip
        answer = await self._post("/v1/chat/completions", body)
        tokens = answer["choices"][0]["logprobs"]["content"]
        if any(token["logprob"] > 0 for token in tokens):
            raise UnexpectedError("a probability above 1")

    async def _echo(self, rng: random.Random) -> None:
        prompt = text(rng, rng.randrange(20, 200))
        body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": rng.randrange(3)}
        answer = await self._post("/v1/completions", body)
        if not answer["choices"][0]["text"].startswith(prompt):
            raise UnexpectedError("a text that does not begin with its prompt")

    async def _picture(self, rng: random.Random) -> None:
        colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
        file = io.BytesIO()
        pixels = Picture(colour, shape, 1, seed=rng.randrange(9)).pixels()
        Image.fromarray(pixels).save(file, "png")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, _part("What do you see?")]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 20}
        await self._post("/v1/chat/completions", body)

    async def _vanished(self, rng: random.Random) -> None:
        n_tokens = int((self._n_ctx // 2) * rng.random() ** 2)
        body = {"messages": [_user(text(rng, n_tokens))], "max_tokens": 200}
        stream = rng.random() < 0.7
        pieces = rng.randrange(1, 6)

        async def read() -> None:
            if not stream:
                await self._post("/v1/chat/completions", body)
                return
            count = 0
            async for _ in self._events("/v1/chat/completions", body):
                count += 1
                if count >= pieces:
                    return

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), rng.random() ** 2 * 2.0)

    async def _half(self, rng: random.Random) -> None:
        url = self._client.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 1000\r\n"
        whole = f"{head}Content-Type: application/json\r\n\r\n{{".encode()
        writer.write(whole[: rng.randrange(1, len(whole) + 1)])
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.1)
        writer.close()

    async def _wrong(self, rng: random.Random) -> None:
        path, body, status = rng.choice(WRONG)
        headers = {"Content-Type": "application/json"}
        answer = await self._client.post(path, content=body, headers=headers)
        _check(answer, status)
        error = answer.json()["error"]
        if not error["message"] or "Traceback" in answer.text:
            raise UnexpectedError(f"{path}: {answer.text}")

    async def _too_long(self, _rng: random.Random) -> None:
        body = {"messages": [_user("word " * self._n_ctx)], "max_tokens": 1}
        answer = await self._client.post("/v1/chat/completions", json=body)
        _check(answer, 400)

    async def _looked(self, rng: random.Random) -> None:
        path = rng.choice(
            ("/health", "/v1/models", "/metrics", "/props", "/slots", "/openapi.json")
        )
        _check(await self._client.get(path), 200)
        tokens = await self._post("/tokenize", {"content": "Hello"})
        await self._post("/detokenize", {"tokens": tokens["tokens"]})

    async def _burst(self, _rng: random.Random) -> None:
        body = {"messages": [_user("Hello")], "max_tokens": 4}
        posts = [
            self._client.post("/v1/chat/completions", json=body) for _ in range(2 * _MAX_QUEUE)
        ]
        for answer in await asyncio.gather(*posts):
            with suppress(RefusedError):
                _check(answer, 200)
                self.seen["of a burst"] += 1
                continue
            self.seen["refused"] += 1


def _check(answer: httpx.Response, status: int) -> None:
    """Raise unless an answer has that status.

    Raises:
        RefusedError: too many wait.
        UnexpectedError: it has another one.
    """
    if answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1:
        raise RefusedError
    if answer.status_code != status:
        raise UnexpectedError(f"status {answer.status_code} for {status}: {answer.text[:200]}")


def _user(content: str) -> Body:
    return {"role": "user", "content": content}


def _part(content: str) -> Body:
    return {"type": "text", "text": content}


def _output_text(response: Mapping[str, Any]) -> str:
    """The text of a Responses object."""
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


# --- the server


@contextmanager
def serving(path: Path, arguments: argparse.Namespace, port: int) -> Any:
    """The server as a process."""
    llama4 = str(Path(sys.executable).with_name("llama4"))
    command = [
        llama4, "serve", str(path), "--port", str(port), "-np", str(arguments.parallel),
        "-c", str(arguments.context), "-t", str(arguments.threads),
        "--max-queue", str(_MAX_QUEUE), "--cache-ram", str(arguments.cache_ram),
        # Sums do not depend on what else is in a batch, so that another answer is a mix-up.
        "-fa", "off",
    ]  # fmt: skip
    with (OUT / "server_load.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not is_healthy(port):
                if process.poll() is not None:
                    sys.exit(f"the server does not start: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.05)
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def resident(pid: int) -> int:
    """Bytes of a process and its children in main memory."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


async def cached(client: httpx.AsyncClient) -> int:
    """Bytes that the server's bounded caches keep."""
    text = (await client.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return sum(int(float(values[f"llama4:{name}"])) for name in _CACHES)


async def all_are_free(client: httpx.AsyncClient) -> bool:
    """Whether no sequence answers, soon after the last of those who ask went."""
    until = time.monotonic() + _FREE_SECONDS
    while time.monotonic() < until:
        slots = (await client.get("/slots")).json()
        if not any(slot["is_processing"] for slot in slots):
            return True
        await asyncio.sleep(0.1)
    return False


async def run(process: subprocess.Popen[bytes], port: int, arguments: argparse.Namespace) -> int:
    """Ask in waves, and say once a minute what was seen; how many things went wrong."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://{HOST}:{port}", timeout=_REQUEST_SECONDS, limits=limits, trust_env=False
    ) as client:
        (known,) = (await client.get("/v1/models")).json()["data"]
        traffic = Traffic(client, arguments.context, pictures=known["meta"]["vision"])
        await traffic.learn(40)
        begun = last = time.monotonic()
        memory: list[tuple[float, int, int]] = []
        busy = number = 0
        while time.monotonic() - begun < arguments.minutes * 60:
            seed = f"{arguments.seed} {number}"
            await traffic.wave(seed, arguments.people, _WAVE_SECONDS)
            busy += not await all_are_free(client)
            number += 1
            now = time.monotonic()
            size = resident(process.pid)
            memory.append((now - begun, size, size - await cached(client)))
            if now - last >= 60 or number == 1:
                last = now
                print(
                    f"{(now - begun) / 60:5.1f} min: {memory[-1][1] / _MIB:.1f} MiB resident, "
                    f"{memory[-1][2] / _MIB:.1f} without caches, "
                    f"{traffic.seen.total()} requests: {dict(traffic.seen.most_common())}, {busy} "
                    f"times not all free, {len(traffic.faults)} faults",
                    flush=True,
                )
    for fault in traffic.faults[:20]:
        print(fault)
    show_memory(memory)
    return busy + len(traffic.faults)


def show_memory(memory: list[tuple[float, int, int]]) -> None:
    """The slopes of the resident memory, in the second half of the time."""
    values = np.array(memory)
    values /= (3600, _MIB, _MIB)
    middle = len(values) // 2
    if len(values) - middle < 3:
        return
    for column, what in ((1, "resident"), (2, "without caches")):
        slope = float(np.polyfit(values[middle:, 0], values[middle:, column], 1)[0])
        first, half, last = values[[0, middle, -1], column]
        print(f"memory, {what}: {first:.1f} MiB after the first wave, {half:.1f} in the middle, "
              f"{last:.1f} at the end; {slope:+.1f} MiB an hour")  # fmt: skip


def main() -> None:
    """Start the server, ask, and stop it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--context", type=int, default=12_288)
    parser.add_argument("--threads", type=int, default=decoding_threads())
    parser.add_argument("--cache-ram", type=int, default=64, help="in MiB")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    path = arguments.model or OUT / "llama-4-tiny-int4.gguf"
    if not path.is_file():
        from llama4_edge import convert

        convert(ROOT / "demo" / "Llama-4-Tiny", path, recipe="int4")
    port = free_port()
    with serving(path, arguments, port) as process:
        problems = asyncio.run(run(process, port, arguments))
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        print(f"SIGTERM ended the server with status {status}")
    sys.exit(int(bool(problems or status)))


if __name__ == "__main__":
    main()

"""A cheap client of OpenAI's chat protocol, in a process of its own, for benchmarks of servers.

Promises to note when each piece of an answer arrives, and little work beside it: a piece costs it a
few microseconds, so that a server of small models is not waiting for it. It reads a `Job` as JSON
on standard input and writes the answers of each script as JSON on standard output.

A script is a person: one connection, one step after the other. A step is the next message of a
conversation, which goes on with the answers that were given.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Step:
    """The next message of a conversation, and how many tokens its answer may have."""

    conversation: str
    user: str
    max_tokens: int
    system: str | None = None


@dataclass(frozen=True)
class Script:
    """The steps of one person; one that repeats them goes on until all others have ended."""

    name: str
    steps: Sequence[Step]
    repeats: bool = False


@dataclass(frozen=True)
class Job:
    """What is asked of which server, all scripts at the same time."""

    host: str
    port: int
    scripts: Sequence[Script]

    @classmethod
    def read(cls, text: str) -> Job:
        """A job that `asdict` and JSON have carried."""
        fields = json.loads(text)
        scripts = [
            Script(one["name"], [Step(**step) for step in one["steps"]], one["repeats"])
            for one in fields["scripts"]
        ]
        return cls(fields["host"], fields["port"], scripts)


@dataclass
class Answer:
    """One answer: seconds of a common clock, and what the server counted."""

    script: str
    conversation: str
    begun: float = 0.0
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""


class _Connection(asyncio.Protocol):
    """One connection over HTTP/1.1 that reads streams of server-sent events.

    Events are kept with the time at which they came, and read when the answer is whole.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._whole: asyncio.Future[None] | None = None
        self._in_body = False
        self._is_chunked = True
        self._chunk = -1  # bytes of the chunk that comes, with its line end; -1 is not known
        self._body: list[tuple[float, bytes]] = []
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._is_open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is being waited for."""
        self._is_open = False
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(ConnectionError(f"the server hung up: {error}"))

    async def send(self, head: bytes, body: bytes) -> list[tuple[float, bytes]]:
        """The parts of the answer's body as they came, each with its time.

        Raises:
            ConnectionError: the server hangs up before the end.
        """
        if self._transport is None or not self._is_open:
            raise ConnectionError("not connected")
        self._whole = asyncio.get_running_loop().create_future()
        self._in_body, self._chunk, self._body = False, -1, []
        self._transport.write(head + body)
        await self._whole
        return self._body

    def data_received(self, data: bytes) -> None:
        """Take what came: the head of an answer, then chunks of its body."""
        now = time.perf_counter()
        self._buffer += data
        if not self._in_body and not self._read_head():
            return
        while self._read_chunk(now):
            pass

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end]).lower()
        del self._buffer[: end + 4]
        self.status = int(head.split(b" ", 2)[1])
        self._is_chunked = b"transfer-encoding: chunked" in head
        if not self._is_chunked:
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._chunk = int(length)
        self._in_body = True
        return True

    def _read_chunk(self, now: float) -> bool:
        """Take a chunk if it is there; whether one was."""
        if self._chunk < 0:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return False
            self._chunk = int(self._buffer[:end], 16) + 2
            del self._buffer[: end + 2]
        if len(self._buffer) < self._chunk:
            return False
        part = bytes(self._buffer[: self._chunk - 2 if self._is_chunked else self._chunk])
        del self._buffer[: self._chunk]
        self._chunk = -1
        if part:
            self._body.append((now, part))
        if part and self._is_chunked:
            return True
        assert self._whole is not None
        self._whole.set_result(None)
        return False


class _Person:
    """Follows one script."""

    def __init__(self, job: Job, script: Script) -> None:
        self._job, self._script = job, script
        self._conversations: dict[str, list[dict[str, str]]] = {}
        self._connection = _Connection()
        self.answers: list[Answer] = []

    async def follow(self, others: Sequence[asyncio.Task[None]]) -> None:
        """All steps once, or again and again while one of `others` goes on."""
        while True:
            for step in self._script.steps:
                self.answers.append(await self._take(step))
                if self._script.repeats and all(other.done() for other in others):
                    return
            if not self._script.repeats:
                return
            self._conversations.clear()

    async def _take(self, step: Step) -> Answer:
        messages = self._conversations.setdefault(step.conversation, [])
        if not messages and step.system is not None:
            messages.append({"role": "system", "content": step.system})
        messages.append({"role": "user", "content": step.user})
        fields = {
            "model": "model", "messages": messages, "max_tokens": step.max_tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        body = json.dumps(fields).encode()
        head = (
            f"POST {_PATH} HTTP/1.1\r\nHost: {self._job.host}:{self._job.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        answer = Answer(self._script.name, step.conversation, begun=time.perf_counter())
        try:
            parts = await self._connection.send(head, body)
        except ConnectionError:
            # llama-server hangs up after a stream.
            loop = asyncio.get_running_loop()
            _, self._connection = await loop.create_connection(
                _Connection, self._job.host, self._job.port
            )
            parts = await self._connection.send(head, body)
        answer.ended = time.perf_counter()
        if self._connection.status != 200:
            raise RuntimeError(f"status {self._connection.status}: {parts[0][1][:300]!r}")
        _read_events(answer, parts)
        messages.append({"role": "assistant", "content": answer.text})
        return answer


def _read_events(answer: Answer, parts: Sequence[tuple[float, bytes]]) -> None:
    """Fill in what the events of a stream say."""
    texts = []
    left = b""
    for now, part in parts:
        *events, left = (left + part).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if not data.startswith(b"{"):
                continue
            fields = json.loads(data)
            if "error" in fields:
                raise RuntimeError(f"the stream ends with an error: {fields['error']}")
            for choice in fields.get("choices", ()):
                if text := choice["delta"].get("content"):
                    texts.append(text)
                    answer.pieces.append(now)
            if usage := fields.get("usage"):
                answer.prompt_tokens = usage["prompt_tokens"]
                answer.completion_tokens = usage["completion_tokens"]
                details = usage.get("prompt_tokens_details") or {}
                answer.cached_tokens = details.get("cached_tokens", 0)
    answer.text = "".join(texts)


async def answers(job: Job) -> list[Answer]:
    """What came of all scripts, in the order of the job."""
    people = [_Person(job, script) for script in job.scripts]
    tasks: list[asyncio.Task[None]] = []
    for person, script in zip(people, job.scripts, strict=True):
        if not script.repeats:
            tasks.append(asyncio.create_task(person.follow(())))
    once = tuple(tasks)
    for person, script in zip(people, job.scripts, strict=True):
        if script.repeats:
            tasks.append(asyncio.create_task(person.follow(once)))
    await asyncio.gather(*tasks)
    return [answer for person in people for answer in person.answers]


if __name__ == "__main__":
    json.dump([asdict(one) for one in asyncio.run(answers(Job.read(sys.stdin.read())))], sys.stdout)

"""How soon an answer ends that is not wanted any more, beside the time of a ubatch and of a token.

    python -m benchmarks.cancel MODEL [--prompt 20000] [--times 20] [--threads N]

Answers are ended while their prompt is read and while they answer, at a random moment, alone and
beside seven others that answer: by ``cancel()`` from another thread, until its reader has come to
the end; by closing the stream, by forgetting it, and by cancelling the task that reads it, as a
server does whose client vanishes, until its sequence is free; and by closing the model, until it
is freed. Ctrl-C is for `llama4 run` in a process of its own, alone: until its model
is freed and it says that it was interrupted, and until Python has ended too.

Prints the median and the worst in milliseconds. On the CPU, ggml stops within one operation of a
graph, which is less than a ubatch; on a GPU after the ubatch.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO

from llama4_edge import AsyncModel, AsyncStream, Model, Sampling
from llama4_edge.chat.answer import Stream
from llama4_edge.errors import EngineError
from llama4_edge.runtime.request import Request
from llama4_edge.system.cores import decoding_threads

_OTHERS = 7
_SHORT = 16  # tokens of a prompt that is read at once
_READING, _ANSWERING = "reading a prompt", "answering"
_SPECIAL = 2048  # the last tokens of Llama 4's vocabulary: all that end an answer


def main() -> None:
    """Measure each way in each state."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=20, help="of each")
    parser.add_argument("--threads", type=int, default=decoding_threads())
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for n_others in (0, _OTHERS):
        with bench.model() as model, bench.others(model, n_others):
            name = f"beside {n_others} others" if n_others else "alone"
            bench.speed(model, name)
            for state in (_READING, _ANSWERING):
                for way in (bench.cancelled, bench.closed, bench.forgotten, bench.vanished):
                    times = [way(model, state) for _ in range(arguments.times)]
                    report(f"{name}, {state}, {way.__name__}", times)
        for state in (_READING, _ANSWERING):
            every = [
                bench.model_closed(n_others, state) for _ in range(max(arguments.times // 4, 1))
            ]
            report(f"{name}, {state}, model closed", every)
    for state in (_READING, _ANSWERING):
        said, ended = zip(*bench.interrupted(state), strict=True)
        report(f"llama4 run, {state}, Ctrl-C until the model is freed", said)
        report(f"llama4 run, {state}, Ctrl-C until the process has ended", ended)


def report(what: str, seconds: Sequence[float]) -> None:
    """A line."""
    print(
        f"{what}: median {median(seconds) * 1e3:.2f} ms, worst {max(seconds) * 1e3:.2f}", flush=True
    )


class Bench:
    """The ways to end an answer, each as the seconds that it took."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._path: Path = arguments.model
        self._n_prompt: int = arguments.prompt
        self._times: int = arguments.times
        self._threads: int = arguments.threads
        self._chance = random.Random(arguments.seed)
        self._reading_seconds = self._token_seconds = 0.0
        self._sampling = Sampling()

    @contextmanager
    def model(self, n_parallel: int = _OTHERS + 1) -> Iterator[Model]:
        """The model with room for all."""
        n_ctx = self._n_prompt + 512
        with Model(
            self._path, n_ctx=n_ctx, n_parallel=n_parallel, n_threads=self._threads
        ) as model:
            if not self._sampling.logit_bias:  # nothing ends an answer but who cancels it
                tokens = range(max(model.engine.n_vocab - _SPECIAL, 0), model.engine.n_vocab)
                ends = tuple((token, -math.inf) for token in tokens if model.engine.is_end(token))
                self._sampling = Sampling(
                    temperature=2.0, top_k=0, top_p=1.0, seed=1, logit_bias=ends
                )
            yield model

    @contextmanager
    def others(self, model: Model, count: int) -> Iterator[None]:
        """So many requests answer, for as long as the block lasts."""
        engine = model.engine
        running: list[Request] = []
        over = threading.Event()

        def work(number: int) -> None:
            with suppress(EngineError):  # the model is closed
                while not over.is_set():
                    request = engine.request(
                        [number + 1] * _SHORT, self._sampling, None, lambda *_: True, paced=False
                    )
                    running.append(request)
                    engine.scheduler.submit(request)
                    engine.scheduler.wait(request, partial(getattr, request, "ended"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: sum(one.n_chosen > 0 for one in running) >= count)
            yield
        finally:
            over.set()
            for request in running:
                engine.scheduler.cancel(request)
            for thread in threads:
                thread.join()

    def speed(self, model: Model, name: str) -> None:
        """The seconds of the prompt, of a ubatch of it, and of a token."""
        done = model.generate(self._prompt(_READING), max_tokens=1)
        n_ubatch = model.engine.settings.n_ubatch
        self._reading_seconds = done.prefill_seconds
        done = model.generate(self._prompt(_ANSWERING), max_tokens=200, sampling=self._sampling)
        self._token_seconds = done.decode_seconds / max(len(done.tokens) - 1, 1)
        ubatch = self._reading_seconds * n_ubatch / self._n_prompt
        print(
            f"{name}: {self._n_prompt} tokens in {self._reading_seconds:.2f} s, so a ubatch of "
            f"{n_ubatch} in {ubatch * 1e3:.1f} ms; a token in {self._token_seconds * 1e3:.2f} ms",
            flush=True,
        )

    def cancelled(self, model: Model, state: str) -> float:
        """By ``cancel()`` from another thread, until its reader has come to the end."""
        stream, since = self._begun(model, state), [0.0]

        def cancel() -> None:
            self._pause(state)
            since[0] = time.perf_counter()
            stream.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        for _piece in stream:
            pass
        ended = time.perf_counter()
        thread.join()
        # What ended by itself is measured again.
        return ended - since[0] if ended > since[0] > 0 else self.cancelled(model, state)

    def closed(self, model: Model, state: str) -> float:
        """By closing the stream, until its sequence is free."""
        stream = self._begun(model, state)
        self._pause(state)
        if stream._request.ended:
            return self.closed(model, state)
        since = time.perf_counter()
        stream.close()
        model.engine.scheduler.wait(stream._request, lambda: stream._request.ended)
        return time.perf_counter() - since

    def forgotten(self, model: Model, state: str) -> float:
        """By forgetting the stream, until its sequence is free."""
        stream = self._begun(model, state)
        request = stream._request
        self._pause(state)
        if request.ended:
            return self.forgotten(model, state)
        since = time.perf_counter()
        del stream
        model.engine.scheduler.wait(request, lambda: request.ended)
        return time.perf_counter() - since

    def vanished(self, model: Model, state: str) -> float:
        """By cancelling the task that reads it, until its sequence is free."""

        async def work() -> float:
            prompt, over = self._prompt(state), asyncio.Event()
            stream = await AsyncModel(model).generate(prompt, sampling=self._sampling, stream=True)
            request = stream._request
            if state == _ANSWERING:
                await anext(stream)
            while request.sequence is None:
                await asyncio.sleep(0.001)
            reading = asyncio.create_task(read(stream))
            await asyncio.sleep(self._seconds(state))
            if request.ended:
                return math.nan
            loop, notify = asyncio.get_running_loop(), request.notify

            def tell() -> None:
                if request.ended:
                    loop.call_soon_threadsafe(over.set)
                notify()

            request.notify = tell
            since = time.perf_counter()
            reading.cancel()
            await over.wait()
            return time.perf_counter() - since

        seconds = asyncio.run(work())
        return self.vanished(model, state) if math.isnan(seconds) else seconds

    def model_closed(self, n_others: int, state: str) -> float:
        """By closing the model, until it is freed."""
        with self.model() as model, self.others(model, n_others):
            stream = self._begun(model, state)
            self._pause(state)
            since = time.perf_counter()
            model.close()
            seconds = time.perf_counter() - since
            stream.close()
        return seconds

    def interrupted(self, state: str) -> list[tuple[float, float]]:
        """By Ctrl-C, until `llama4 run` says so, and until its process has ended."""
        command = [str(Path(sys.executable).with_name("llama4")), "run", str(self._path), "--raw"]
        command += ["--temp", "2", "--top-k", "0", "--top-p", "1", "-t", str(self._threads)]
        command += ["-c", str(self._n_prompt + 4096)]
        command += [
            part for token, _ in self._sampling.logit_bias for part in ("-l", f"{token}-inf")
        ]
        seconds: list[tuple[float, float]] = []
        with TemporaryDirectory() as directory:
            prompt = Path(directory) / "prompt.txt"
            with self.model(1) as model:
                prompt.write_text(self._text(model, state), encoding="utf-8")
            begun = time.perf_counter()
            with prompt.open() as file:
                subprocess.run([*command, "-n", "1"], stdin=file, check=True, capture_output=True)
            whole = time.perf_counter() - begun
            while len(seconds) < self._times:
                with prompt.open() as file:
                    taken = self._interrupt(command, file, state, whole)
                if taken is not None:
                    seconds.append(taken)
        return seconds

    def _interrupt(
        self, command: list[str], prompt: IO[str], state: str, whole: float
    ) -> tuple[float, float] | None:
        """The seconds from Ctrl-C to each end; None where the process ended by itself."""
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=prompt, stdout=pipe, stderr=pipe) as child:
            assert child.stdout is not None and child.stderr is not None
            if state == _READING:
                # Most of the time to its first token is reading, after the start and the loading.
                reading = min(self._reading_seconds, whole)
                time.sleep(self._chance.uniform(whole - reading * 0.7, whole - reading * 0.1))
            else:
                child.stdout.read(1)
                self._pause(state)
            since = time.perf_counter()
            child.send_signal(signal.SIGINT)
            said = 0.0
            for line in child.stderr:
                if b"interrupted" in line:
                    said = time.perf_counter() - since
            status = child.wait()
            ended = time.perf_counter() - since
        return (said, ended) if status == 130 and said else None

    def _begun(self, model: Model, state: str) -> Stream:
        """An answer whose prompt is being read, or which answers."""
        prompt = self._prompt(state)
        stream = model.generate(prompt, sampling=self._sampling, stream=True)
        if state == _ANSWERING:
            next(stream)
        else:
            wait_for(lambda: stream._request.sequence is not None)
        return stream

    def _prompt(self, state: str) -> list[int]:
        """Tokens that begin as no others do."""
        count = self._n_prompt if state == _READING else _SHORT
        return [self._chance.randrange(1, 200) for _ in range(count)]

    def _text(self, model: Model, state: str) -> str:
        """A prompt for the command line."""
        words = model.tokenize("The quick brown fox jumps over the lazy dog. ")
        count = self._n_prompt if state == _READING else _SHORT
        return model.detokenize((words * (count // len(words) + 1))[:count])

    def _pause(self, state: str) -> None:
        """A random part of the time that the state lasts."""
        time.sleep(self._seconds(state))

    def _seconds(self, state: str) -> float:
        """As many seconds."""
        most = self._reading_seconds * 0.8 if state == _READING else self._token_seconds * 100
        return self._chance.uniform(0.0, most)


async def read(stream: AsyncStream) -> None:
    """Read it to its end."""
    async for _piece in stream:
        pass


def wait_for(condition: Callable[[], bool]) -> None:
    """Look until it is so."""
    while not condition():
        time.sleep(0.001)


if __name__ == "__main__":
    main()

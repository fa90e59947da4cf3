"""Mixed traffic for as long as one likes: is each answer the one it is alone, and memory flat?

    python -m benchmarks.traffic [MODEL] [--minutes 60] [--seed 1] [--parallel 8]

Eight threads and eight tasks ask one model at random: prompts of 1 to 20,000 tokens, of which a
third begin alike; several answers to one prompt; streams that are read slowly, cancelled by another
thread, closed, or forgotten; tasks that are cancelled; prompts that do not fit, tokens that do not
exist, and readers that fail.

After each half minute of that, every answer is asked for again in an engine of one sequence that
holds nothing. Every second time tokens are drawn from all, and the logits that each was chosen from
are compared, up to where rounding chose another token: a difference above --bound is a mix-up. In
between the likeliest are taken, several in one call of native code: where another token came, its
logit must be as near to the largest. (A random model of the tests is asked unless one is named. Its
experts are equal: with others, near ties between experts can be off by more.)
Then all sequences must be free at once. A line says what was seen, and the resident memory; the
last ones give the slope of the memory over the second half of the time. The exit status is 1 after
a mix-up, a sequence that is not free, or an error that nobody asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from llama4_edge import AsyncModel, Model, Sampling
from llama4_edge.errors import ContextFullError, EngineError
from llama4_edge.runtime.bindings import steps
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.settings import EngineSettings
from tests.tiny_model import with_chat_tokens

_LONGEST = 20_000
_WAVE_SECONDS = 30.0
_MIB = 2**20

# Texts that differ as much as their prompts do; and what native code may take.
_WILD = Sampling(temperature=2.0, top_k=0, top_p=1.0)
_GREEDY = Sampling(temperature=0.0)


class _ReaderError(Exception):
    """What a reader of the traffic fails with."""


class Log:
    """The requests of an engine, each with the logits that its tokens were chosen from."""

    def __init__(self, engine: Engine) -> None:
        self.asked: list[tuple[Request, list[npt.NDArray[np.float32]]]] = []
        self.has_logits = True
        self._request = engine.request
        engine.request = self.request  # type: ignore[method-assign]

    def request(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int | None,
        accept: Callable[[int, bool], bool],
        **how: Any,
    ) -> Request:
        """As ``Engine.request``."""
        rows: list[npt.NDArray[np.float32]] = []

        def noting(token: int, is_end: bool) -> bool:
            if self.has_logits:
                assert request.sequence is not None
                rows.append(np.array(request.sequence.last_logits()))
            return accept(token, is_end)

        request = self._request(prompt, sampling, max_tokens, noting, **how)
        self.asked.append((request, rows))
        return request

    def take(self) -> list[tuple[Request, list[npt.NDArray[np.float32]]]]:
        """All that were asked since the last time."""
        taken, self.asked = self.asked, []
        return taken


class Traffic:
    """Those who ask; ``seen`` counts what became of what they asked for."""

    def __init__(self, model: Model, longest: int) -> None:
        self.model, self.longest = model, longest
        self.sampling = _WILD
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.faults: list[str] = []
        self._shared = self._tokens(random.Random("shared"), longest // 2)
        self._acts = (
            self._whole, self._whole, self._whole, self._several, self._slow, self._cancelled,
            self._cancelled, self._closed, self._forgotten, self._refused, self._failing,
        )  # fmt: skip

    def wave(self, seed: str, seconds: float) -> None:
        """Ask at random for that long, and wait for all of it."""
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(9) as pool:
            users = [
                pool.submit(self._thread, random.Random(f"{seed} {n}"), until) for n in range(8)
            ]
            users.append(pool.submit(lambda: asyncio.run(self._tasks(seed, until))))
            for user in users:
                user.result()
        gc.collect()

    def _thread(self, chance: random.Random, until: float) -> None:
        while time.monotonic() < until:
            with self._expecting():
                chance.choice(self._acts)(chance)

    async def _tasks(self, seed: str, until: float) -> None:
        asynchronous = AsyncModel(self.model)
        users = [
            self._task(asynchronous, random.Random(f"{seed} task {n}"), until) for n in range(8)
        ]
        await asyncio.gather(*users)

    async def _task(self, model: AsyncModel, chance: random.Random, until: float) -> None:
        while time.monotonic() < until:
            with self._expecting():
                limit = chance.random() * 0.5 if chance.random() < 0.3 else None
                try:
                    await asyncio.wait_for(model.generate(**self._question(chance)), limit)
                    self._note("whole")
                except asyncio.TimeoutError:
                    self._note("cancelled")

    def _note(self, what: str, count: int = 1) -> None:
        with self._lock:
            self.seen[what] += count

    @contextmanager
    def _expecting(self) -> Iterator[None]:
        """No error comes out."""
        try:
            yield
        except Exception as error:
            self.faults.append(f"{type(error).__name__}: {error}")

    # What a thread may do

    def _question(self, chance: random.Random) -> dict[str, Any]:
        length = int(self.longest ** chance.random() ** 1.5)
        prompt = self._tokens(chance, length)
        if chance.random() < 0.3:
            prompt[: length // 2] = self._shared[: length // 2]
        return {
            "prompt": prompt, "max_tokens": chance.randrange(1, 40), "sampling": self.sampling,
            "seed": chance.randrange(10**6),
        }  # fmt: skip

    def _tokens(self, chance: random.Random, count: int) -> list[int]:
        return [chance.randrange(256) for _ in range(count)]

    def _whole(self, chance: random.Random) -> None:
        self.model.generate(**self._question(chance))
        self._note("whole")

    def _several(self, chance: random.Random) -> None:
        self._note("whole", len(self.model.generate(**self._question(chance), n=3)))

    def _slow(self, chance: random.Random) -> None:
        for _piece in self.model.generate(**self._question(chance), stream=True):
            time.sleep(chance.random() * 0.01)
        self._note("whole")

    def _cancelled(self, chance: random.Random) -> None:
        stream = self.model.generate(**self._question(chance), stream=True)
        timer = threading.Timer(chance.random() ** 3 * 0.5, stream.cancel)
        timer.start()
        for _piece in stream:
            pass
        timer.join()
        self._note("whole" if stream.completion.finish_reason else "cancelled")

    def _closed(self, chance: random.Random) -> None:
        with self.model.generate(**self._question(chance), stream=True) as stream:
            next(stream, None)
        self._note("closed")

    def _forgotten(self, chance: random.Random) -> None:
        stream = self.model.generate(**self._question(chance), stream=True)
        next(stream, None)
        del stream
        self._note("forgotten")

    def _refused(self, chance: random.Random) -> None:
        n_ctx = self.model.engine.settings.n_ctx
        beyond: list[list[int]] = [[1] * (n_ctx + 1), [self.model.engine.n_vocab], []]
        prompt = chance.choice(beyond)
        try:
            self.model.generate(prompt)
        except (ContextFullError, EngineError):
            self._note("refused")
        else:
            self.faults.append(f"a prompt of {len(prompt)} tokens was not refused")

    def _failing(self, chance: random.Random) -> None:
        question = self._question(chance)
        countdown = iter(range(chance.randrange(1, 8), 0, -1))

        def accept(_token: int, _is_end: bool) -> bool:
            if next(countdown) == 1:
                raise _ReaderError
            return True

        engine = self.model.engine
        request = engine.request(question["prompt"], self.sampling.with_seed(), None, accept)
        engine.scheduler.submit(request)
        engine.scheduler.wait(request, lambda: request.ended)
        if isinstance(request.error, _ReaderError):
            self._note("failed")
        else:
            self.faults.append(f"a reader failed, and its request ended with {request.error!r}")


def main() -> None:
    """Ask in waves, and say once a minute what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--longest", type=int, default=_LONGEST, help="prompt, in tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-ram", type=int, default=64, help="for finished sequences, in MiB")
    parser.add_argument("--bound", type=float, default=0.003, help="of a logit's difference")
    arguments = parser.parse_args()
    with TemporaryDirectory() as directory:
        path = arguments.model or with_chat_tokens().write(Path(directory) / "random.gguf")
        sys.exit(run(path, arguments))


def run(path: Path, arguments: argparse.Namespace) -> int:
    """The exit status."""
    # (ggml's flash attention on the CPU sums in f16 where fewer than 64 tokens are decoded.)
    settings = EngineSettings(
        n_ctx=arguments.longest + 480, n_batch=512, n_ubatch=256, n_threads=arguments.threads,
        flash_attention="off", cache_ram=0,
    )  # fmt: skip
    names = ("n_ctx", "n_batch", "n_ubatch", "n_threads", "flash_attention")
    given = {name: getattr(settings, name) for name in names}
    given.update(n_parallel=arguments.parallel, cache_ram=arguments.cache_ram * _MIB)
    begun = last = time.monotonic()
    memory: list[tuple[float, int]] = []
    worst, compared, mixed, other, busy, number = 0.0, 0, 0, 0, 0, 0
    with (
        Model(path, **given) as model,
        Engine(path, settings) as alone,
    ):
        log, traffic = Log(model.engine), Traffic(model, arguments.longest)
        while time.monotonic() - begun < arguments.minutes * 60:
            log.has_logits = number % 2 == 0
            traffic.sampling = _WILD if log.has_logits else _GREEDY
            traffic.wave(f"{arguments.seed} {number}", _WAVE_SECONDS)
            for request, rows in log.take():
                model.engine.scheduler.wait(request, partial(getattr, request, "ended"))
                difference, same = compare(alone, request, rows)
                worst, compared = max(worst, difference), compared + 1
                mixed += difference > arguments.bound
                other += not same
            busy += not all_are_free(model.engine)
            log.take()
            number += 1
            gc.collect()
            now = time.monotonic()
            memory.append((now - begun, resident()))
            if now - last >= 60 or number == 1:
                last = now
                print(
                    f"{(now - begun) / 60:5.1f} min: {memory[-1][1] / _MIB:.1f} MiB resident, "
                    f"{dict(traffic.seen)}, {compared} compared, largest difference of a logit "
                    f"{worst:.5f}, {other} went on with another token, {mixed} mixed up, "
                    f"{busy} times not all free, {len(traffic.faults)} faults",
                    flush=True,
                )
    for fault in traffic.faults[:10]:
        print(fault)
    times, sizes = np.array(memory[len(memory) // 2 :]).T
    if len(times) > 2:
        slope = float(np.polyfit(times / 3600, sizes / _MIB, 1)[0])
        print(f"memory: {memory[0][1] / _MIB:.1f} MiB after the first wave, "
              f"{memory[len(memory) // 2][1] / _MIB:.1f} in the middle, "
              f"{memory[-1][1] / _MIB:.1f} at the end; {slope:+.1f} MiB an hour")  # fmt: skip
    return int(bool(mixed or busy or traffic.faults))


def compare(
    alone: Engine, beside: Request, rows: Sequence[npt.NDArray[np.float32]]
) -> tuple[float, bool]:
    """The largest difference of a logit up to the first other token, and whether there was none."""
    chosen = beside.text[beside.n_prompt :]
    if not chosen:
        return 0.0, True
    alone.clear()
    differences = [0.0]

    def accept(token: int, _is_end: bool) -> bool:
        index = len(differences) - 1
        assert request.sequence is not None
        logits = request.sequence.last_logits()
        # Two that are both off by the bound may change places.
        off = abs(float(logits[token] - logits[chosen[index]])) / 2
        if rows:
            off = float(np.abs(logits - rows[index]).max())
        differences.append(off)
        return token == chosen[index]

    prompt = beside.text[: beside.n_prompt]
    request = alone.request(prompt, beside.sampling, len(chosen), accept, paced=False)
    with patch.object(steps, "_native", lambda: None):  # for the logits of each token
        alone.scheduler.submit(request)
        alone.scheduler.wait(request, lambda: request.ended)
    if request.error is not None:
        raise request.error
    return max(differences), request.text[request.n_prompt :] == chosen


def all_are_free(engine: Engine) -> bool:
    """Whether as many requests as there are sequences hold one at the same time."""
    count = engine.settings.n_parallel
    requests = [
        engine.request([number], _WILD.with_seed(), None, lambda *_: True)
        for number in range(count)
    ]
    for request in requests:
        engine.scheduler.submit(request)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(one.n_chosen or one.ended for one in requests):
        time.sleep(0.01)
    free = all(one.sequence is not None for one in requests)
    for request in requests:
        engine.scheduler.cancel(request)
        engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]
    return free


def resident() -> int:
    """Bytes of this process in main memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()

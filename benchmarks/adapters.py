"""What adapters cost: a token with one, a change of them, and requests that have different ones.

    python -m benchmarks.adapters MODEL [--rank 16] [--requests 4] [--tokens 128] [--threads N]

An adapter of random numbers, on attention and, where the model has them, on the experts too, is
made for the model and measured against it: the seconds that a change takes, and of that how much of
a token; the tokens a second of one answer, bare and with the adapter; and those of several answers
at the same time, all with the same adapter, and each with another scale of it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from gguf import GGUFWriter

from llama4_edge.runtime.adapters import Adapter
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.files.model_file import ModelInfo, check_model_file
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.system.cores import decoding_threads

_PLAIN = 1000  # ids below this are no control tokens
_PROMPT = 64
_CHANGES = 20


def main() -> None:
    """Measure changes, single answers and answers at the same time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=decoding_threads())
    arguments = parser.parse_args()
    info = check_model_file(arguments.model, needs_tokenizer=False)
    for targets in (r"attn_(q|k|v|output)\.", r"(attn_(q|k|v|output)|_exps)\."):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "adapter.gguf"
            nbytes = _write_adapter(path, info, targets, arguments.rank)
            print(f"rank {arguments.rank} on {targets}: {nbytes / 1e6:.1f} MB")
            _measure(arguments, path)


def _measure(arguments: argparse.Namespace, path: Path) -> None:
    settings = EngineSettings(
        n_ctx=_PROMPT + arguments.tokens + 1,
        n_parallel=arguments.requests,
        n_threads=arguments.threads,
        cache_ram=0,
        adapters=(Adapter(str(path)),),
    )
    with Engine(arguments.model, settings) as engine:
        bare, single = (_rate(engine, [scales], arguments.tokens) for scales in ([], [(0, 1.0)]))
        seconds = _change_seconds(engine)
        print(
            f"  one answer: {bare:.1f} tokens/s bare, {single:.1f} with it ({single / bare:.0%})\n"
            f"  a change: {seconds * 1e3:.1f} ms, as long as {seconds * single:.1f} tokens"
        )
        count = arguments.requests
        same = _rate(engine, [[(0, 1.0)]] * count, arguments.tokens)
        other = _rate(engine, [[(0, 1.0 + at / 8)] for at in range(count)], arguments.tokens)
        print(
            f"  {count} answers: {same:.1f} tokens/s with one adapter, {other:.1f} with {count} "
            f"scales of it ({other / same:.0%})",
            flush=True,
        )


def _rate(engine: Engine, wanted: list[list[tuple[int, float]]], count: int) -> float:
    """Tokens a second of answers to different prompts, all at the same time."""
    rates = []
    for _ in range(3):
        engine.clear()
        begun = time.perf_counter()
        requests = [
            engine.request(
                _random_tokens(engine, seed), Sampling(temperature=0.0), count,
                lambda *_: True, paced=False, ignores_ends=True, adapters=adapters,
            )
            for seed, adapters in enumerate(wanted)
        ]  # fmt: skip
        for request in requests:
            engine.scheduler.submit(request)
        for request in requests:
            engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]
            if request.error is not None:
                raise request.error
        rates.append(len(wanted) * count / (time.perf_counter() - begun))
    return max(rates)


def _change_seconds(engine: Engine) -> float:
    """The median of what a change takes."""
    native = engine._handles.adapters
    assert native is not None
    seconds = []
    for at in range(_CHANGES):
        scales = (1.0 + at / 8,)
        engine.in_thread(lambda scales=scales: native.use(scales))  # type: ignore[misc]
        seconds.append(native.switch_seconds)
    return median(seconds)


def _random_tokens(engine: Engine, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return [int(token) for token in random.integers(0, min(engine.n_vocab, _PLAIN), _PROMPT)]


def _write_adapter(path: Path, info: ModelInfo, targets: str, rank: int) -> int:
    """An adapter of small random numbers, in f16; its bytes."""
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama4")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    nbytes = 0
    for tensor in info.tensors:
        if re.search(targets, tensor.name) is None:
            continue
        inner, outer, *experts = tensor.shape
        for suffix, shape in (("a", (*experts, rank, inner)), ("b", (*experts, outer, rank))):
            numbers = random.standard_normal(shape, np.float32) * np.float32(0.01)
            writer.add_tensor(f"{tensor.name}.lora_{suffix}", numbers.astype(np.float16))
            nbytes += 2 * numbers.size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return nbytes


if __name__ == "__main__":
    main()

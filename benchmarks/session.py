"""A session's life: read, save, reopen in another process, and the first token of an answer.

    python -m benchmarks.session [--model GGUF] [--tokens 16000] [--runs 5]

Each step is a process of its own, with the threads that ``llama4`` takes: reading the tokens, and
saving them; then reopening, with the file in the page cache, and asking what goes on. Beside that,
whether compressing the state would pay: bytes and seconds of zlib's level 1 on it. The model is the
one in the box; its text is what it was trained on, again and again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from benchmarks.peer import ROOT
from llama4_edge import Model, convert
from llama4_edge.runtime.files.session_file import SessionFile

TEXT = "Remember: the code of the old lighthouse is 48213. Which code does it have? "


def main() -> None:
    """Measure and print, a line for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "demo/out/llama-4-tiny-int4.gguf"))
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, path = arguments.step
        print(json.dumps(STEPS[step](arguments.model, arguments.tokens, path)))
        return
    if not Path(arguments.model).exists():
        Path(arguments.model).parent.mkdir(exist_ok=True)
        convert(ROOT / "demo/Llama-4-Tiny", arguments.model)
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "book.l4s")
        saved = in_a_process(arguments, "save", path)
        reopened = [in_a_process(arguments, "reopen", path) for _ in range(arguments.runs)]
        show(saved, reopened)
        compression(Path(path), saved["save"])


def in_a_process(arguments: argparse.Namespace, step: str, path: str) -> dict[str, Any]:
    """What a step measures, in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.session", "--model", arguments.model,
        "--tokens", str(arguments.tokens), "--step", step, path,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def opened(path: str, n_tokens: int) -> tuple[Model, list[int]]:
    """The model, and the tokens to read."""
    model = Model(path, n_ctx=n_tokens + 256)
    ids = model.tokenize(TEXT)
    return model, (ids * (n_tokens // len(ids) + 1))[:n_tokens]


def save(model_path: str, n_tokens: int, path: str) -> dict[str, Any]:
    """Read, save, and go on."""
    model, tokens = opened(model_path, n_tokens)
    with model:
        begun = time.perf_counter()
        model.generate(tokens, max_tokens=0)
        read = time.perf_counter() - begun
        session = model.save_session(path)
        text = model.generate([*tokens, *tokens[:9]], max_tokens=16, temperature=0.0).text
    nbytes = Path(path).stat().st_size
    return {"read": read, "save": session.seconds, "bytes": nbytes, "text": text}


def reopen(model_path: str, n_tokens: int, path: str) -> dict[str, Any]:
    """Reopen, and go on."""
    model, tokens = opened(model_path, n_tokens)
    with model:
        begun = time.perf_counter()
        session = model.load_session(path)
        seconds = time.perf_counter() - begun
        stream = model.generate([*tokens, *tokens[:9]], max_tokens=16, temperature=0.0, stream=True)
        next(stream)
        first = time.perf_counter() - begun
        for _piece in stream:
            pass
        text = stream.completion.text
        reused = stream.completion.reused_tokens
    return {
        "reopen": seconds, "first": first, "text": text, "reused": reused,
        "tokens": len(session.tokens),
    }  # fmt: skip


STEPS = {"save": save, "reopen": reopen}


def show(saved: dict[str, Any], reopened: list[dict[str, Any]]) -> None:
    """A line for each step."""
    tokens, size = reopened[0]["tokens"], saved["bytes"] / 1e6
    print(f"{'reading':24} {saved['read']:.3f} s, {tokens / saved['read']:,.0f} tokens/s")
    print(f"{'saving':24} {saved['save']:.3f} s, {size:,.1f} MB, {size / saved['save']:,.0f} MB/s")
    for name, key in (("reopening", "reopen"), ("until the first token", "first")):
        seconds = statistics.median(one[key] for one in reopened)
        least, most = min(one[key] for one in reopened), max(one[key] for one in reopened)
        print(
            f"{name:24} {seconds:.3f} s ({least:.3f} to {most:.3f}), "
            f"{saved['read'] / seconds:,.0f} times as fast as reading, {size / seconds:,.0f} MB/s"
        )
    same = all(one["text"] == saved["text"] for one in reopened)
    reused = min(one["reused"] for one in reopened)
    print(f"{'the answer':24} {'the same' if same else 'ANOTHER ONE'}, {reused:,} tokens reused")


def compression(path: Path, seconds: float) -> None:
    """What zlib's level 1 would save of the state, and what it would cost."""
    with SessionFile(path) as file:
        state = file.read_state()
    assert state is not None
    begun = time.perf_counter()
    packed = zlib.compress(state.data.data, 1)
    pack = time.perf_counter() - begun
    begun = time.perf_counter()
    zlib.decompress(packed)
    unpack = time.perf_counter() - begun
    share = len(packed) / state.data.nbytes
    print(
        f"{'zlib, level 1':24} {share:.0%} of the bytes, {pack:.3f} s to pack, {unpack:.3f} s to "
        f"unpack, beside {seconds:.3f} s of saving"
    )


if __name__ == "__main__":
    main()

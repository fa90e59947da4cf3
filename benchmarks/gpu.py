"""Scout on one GPU: plans compared with measurements. `benchmarks/gpu.sh` prepares the machine.

    python -m benchmarks.gpu [--recipe int4] [--hold 48,24] [--seconds 400] [--out gpu.md]
    python -m benchmarks.gpu --trial

Makes a full-size Scout of random weights and measures: the whole model on the GPU, with memory
compared with the plan, and prefill and decode compared with llama-bench and with the memory
bandwidth; the longest context for each KV cache type; and with less GPU memory, the plan's
placement compared with whole layers (``-ngl``) and with llama.cpp's own ``--fit``. Everything goes
through the commands. What takes llama.cpp's counts for all there is would miss what the driver and
the kernels take beside it: where nvidia-smi is, what it calls used at most stands beside them.
Writes a section of Markdown, line by line; a step that fails says so there, and the next begins.
With --seconds, the steps that would end later are left out, the least telling ones first.

With --trial a worker on the loopback interface stands for the GPU and the model is small, to try
the script on any machine; its numbers have no meaning.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peer import OUT, llama_bench, our_bench
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.presets import PRESETS
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.runtime.workers.worker import local_workers

GIB = 2**30
TRIAL = {
    "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 1024, "intermediate_size_mlp": 1024,
    "vocab_size": 4096,
}  # fmt: skip

# Allocates memory on the first GPU until its standard input ends.
_BALLAST = """
import ctypes, sys
from llama4_edge.runtime.bindings.devices import list_devices, offload_devices
from llama4_edge.runtime.bindings.library import native_function
(gpu, *_), wanted = offload_devices(), int(sys.argv[1])
free = next(device.free_bytes for device in list_devices() if device.name == gpu.name)
allocate = native_function(
    "ggml_backend_buft_alloc_buffer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
)
size = max(free - wanted, 0)
if size and not allocate(gpu.buffer_type, size):
    sys.exit("the allocation failed")
print(next(device.free_bytes for device in list_devices() if device.name == gpu.name), flush=True)
sys.stdin.read()
"""


class Time:
    """What is left of `seconds`; None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds until everything should have ended, 1 at least; None without a limit."""
        return None if self._end is None else max(self._end - time.monotonic(), 1.0)


class Peak:
    """The most MiB of the first GPU that nvidia-smi calls used in the block; None without one."""

    def __enter__(self) -> Peak:
        self.mib: int | None = None
        query = "--query-gpu=memory.used --format=csv,noheader,nounits --id=0 --loop-ms=100"
        try:
            self._child: subprocess.Popen[str] | None = subprocess.Popen(
                ["nvidia-smi", *query.split()], stdout=subprocess.PIPE, text=True
            )
        except OSError:
            self._child = None
            return self
        threading.Thread(target=self._watch, args=(self._child,), daemon=True).start()
        return self

    def _watch(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip().isdecimal():
                self.mib = max(self.mib or 0, int(line))

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    @property
    def text(self) -> str:
        """In GiB, for a table."""
        return "" if self.mib is None else f"{self.mib / 1024:.2f} GiB"


@dataclass(frozen=True)
class Machine:
    """The flags that select the GPU, and a way to limit its free memory."""

    ours: tuple[str, ...]
    peer: tuple[str, ...]
    trial: bool
    threads: int
    time: Time

    @contextmanager
    def held_to(self, nbytes: int) -> Iterator[list[str]]:
        """Limit the GPU to `nbytes` of free memory; yields further flags for plans."""
        if self.trial:
            # A plan keeps one GiB of a described GPU free.
            yield ["--vram", f"{nbytes / GIB + 1:.3f}G"]
            return
        command = [sys.executable, "-c", _BALLAST, str(nbytes)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None and child.stdin is not None
            left = child.stdout.readline()
            if not left:
                sys.exit("the ballast could not be allocated")
            print(f"  held to {int(left) / GIB:.2f} GiB", flush=True)
            yield []
            child.stdin.close()


class Section:
    """The Markdown, written after every line, because a later step may fail."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, list[str]()

    def add(self, *lines: str) -> None:
        """Write further lines, and print them."""
        self._lines += lines
        self._path.write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        print("\n".join(lines), flush=True)

    def table(self, *headings: str) -> Callable[..., None]:
        """Begin a table; returns a function that adds a row."""
        self.add("", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}")
        return lambda *cells: self.add(f"| {' | '.join(str(cell) for cell in cells)} |")


def main() -> None:
    """All steps, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--hold", default="48,24", help="limits of the GPU's memory, in GiB")
    parser.add_argument("--prompt", default="512")
    parser.add_argument("--generate", default="128")
    parser.add_argument("--depths", default="0,4096,32768")
    parser.add_argument("--repetitions", default="3")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--directory", type=Path, default=OUT)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, help="for all steps together")
    parser.add_argument("--trial", action="store_true")
    arguments = parser.parse_args()
    limit = Time(arguments.seconds)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    section = Section(arguments.out or arguments.directory / "gpu.md")
    with contextlib.ExitStack() as stack:
        model, held = "scout", [float(size) * GIB for size in arguments.hold.split(",")]
        machine = Machine((), (), trial=False, threads=arguments.threads, time=limit)
        if arguments.trial:
            ((endpoint,), model) = stack.enter_context(local_workers(1)), trial_config(arguments)
            machine = Machine(("--workers", endpoint), ("-rpc", endpoint), True, 1, limit)
            arguments.prompt, arguments.generate, arguments.depths = "64", "16", "0,128"
        start = time.monotonic()
        design = blueprint(model, recipe=arguments.recipe, synthetic=True)
        path = stack.enter_context(synthetic_file(design, arguments.directory, keep=True))
        seconds = time.monotonic() - start
        if arguments.trial:
            held = [design.nbytes * share for share in (0.8, 0.5)]
        section.add(
            f"### {design.name}, {arguments.recipe}, {design.nbytes / GIB:.2f} GiB, on "
            f"{'a loopback worker (a trial)' if arguments.trial else gpu_name()}",
            "",
            f"Random weights, made in {seconds:.0f} s. {machine.threads} CPU threads; "
            f"{arguments.repetitions} repetitions; llama-bench has the same libraries, threads "
            "and tokens.",
        )
        # Each with the seconds that it took on an H100 (held to 24 GiB: not known).
        steps: list[tuple[str, float, Callable[[], None]]] = [
            ("All on the GPU: memory", 15, lambda: memory(section, machine, path)),
            ("All on the GPU: speed", 100, lambda: speed(section, machine, path, arguments)),
            ("The longest context", 50, lambda: longest_context(section, machine, path)),
            *(
                (
                    f"Held to {size / GIB:.1f} GiB",
                    75.0,
                    partial(in_less, section, machine, path, round(size), arguments),
                )
                for size in held
            ),
            ("Loading", 20, lambda: loading(section, machine, path)),
        ]
        failed = [
            title for title, takes, step in steps if not done(section, limit, title, takes, step)
        ]
    sys.exit(f"not done: {', '.join(failed)}" if failed else 0)


def done(section: Section, limit: Time, title: str, takes: float, step: Callable[[], None]) -> bool:
    """Whether a step came to its end; the section says why not."""
    section.add("", f"#### {title}")
    left, start = limit.left, time.monotonic()
    if left is not None and left < takes:
        section.add("", f"Left out: {left:.0f} s were left.")
        return False
    try:
        step()
    except subprocess.TimeoutExpired as error:
        section.add("", f"Stopped after {error.timeout:.0f} s.")
        return False
    except (SystemExit, Exception) as error:
        section.add("", f"Failed: {type(error).__name__}: {error}")
        return False
    print(f"  {time.monotonic() - start:.0f} s", flush=True)
    return True


def trial_config(arguments: argparse.Namespace) -> str:
    """The config.json of a small model with several experts."""
    place = arguments.directory / "trial" / "config.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({**PRESETS["scout"].config, **TRIAL}), encoding="utf-8")
    return str(place)


def gpu_name() -> str:
    """llama.cpp's description of the GPUs, from a process of its own, so that none stays in use."""
    script = (
        "from llama4_edge.runtime.bindings.devices import list_devices\n"
        "print(*(gpu.description for gpu in list_devices() if gpu.type == 'gpu'), sep=', ')"
    )
    names = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not names:
        sys.exit("llama.cpp finds no GPU; --trial needs none")
    return names


def memory(section: Section, machine: Machine, path: Path) -> None:
    """What is allocated compared with the plan, and with what the driver calls used."""
    section.add("", f"Plan: {summary(plan(machine, path, *machine.ours))}.")
    row = section.table("device", "planned, bytes", "allocated, bytes", "off", "the driver's count")
    for device in checked(machine, path, *machine.ours):
        sums = (sum(device[side].values()) for side in ("planned", "allocated"))
        numbers = (f"{total:,}" for total in sums)
        row(device["name"], *numbers, f"{device['off']:.3%}", device["driver"])


def speed(section: Section, machine: Machine, path: Path, arguments: argparse.Namespace) -> None:
    """Prefill and decode compared with llama-bench and with the memory bandwidth."""
    planned = plan(machine, path, *machine.ours)
    tests = [
        "-p", arguments.prompt, "-n", arguments.generate, "-d", arguments.depths,
        "-r", arguments.repetitions, "-t", str(machine.threads),
    ]  # fmt: skip
    with Peak() as ours_peak:
        ours = our_bench(path, *tests, *machine.ours, timeout=machine.time.left)
    row = section.table("test", "ours, tokens/s", "of the limit")
    limit = planned["estimated_decode_tokens_per_second"]
    for record in ours:
        share = f"{record['avg_ts'] / limit:.0%}" if limit and record["n_gen"] else ""
        row(test_name(record), rate(record), share)
    with Peak() as peer_peak:
        peer = llama_bench(path, *tests, *machine.peer, timeout=machine.time.left)
    row = section.table("test", "llama-bench", "ratio")
    for record, theirs in zip(ours, peer, strict=True):
        row(test_name(record), rate(theirs), f"{record['avg_ts'] / theirs['avg_ts']:.3f}")
    read = planned["bytes_per_token_read"] / 1e9
    section.add(
        "",
        f"A token reads {read:.2f} GB of weights; "
        + (f"what memory allows is {limit:.0f} tokens/s." if limit else "no bandwidth is known."),
    )
    if ours_peak.mib is not None:
        section.add(f"The driver's count: {ours_peak.text}, and {peer_peak.text} with llama-bench.")


def loading(section: Section, machine: Machine, path: Path) -> None:
    """From the start of a process to its end, with a prompt of one token."""
    tests = ("-p", "1", "-n", "0", "-r", "1", "-t", str(machine.threads), "--no-warmup")
    row = section.table("command", "seconds")
    for name, bench, where in (
        ("llama4 bench", our_bench, machine.ours),
        ("llama-bench", llama_bench, machine.peer),
    ):
        start = time.monotonic()
        bench(path, *tests, *where, timeout=machine.time.left)
        row(name, f"{time.monotonic() - start:.1f}")


def longest_context(section: Section, machine: Machine, path: Path) -> None:
    """The longest context with the whole model on the GPU, for each KV cache type, checked."""
    row = section.table(
        "KV cache", "tokens", "planned on the GPU", "allocated", "left of the GPU",
        "the driver's count",
    )  # fmt: skip
    for kv_type in ("f16", "q8_0", "q4_0"):
        # A worker lends all of this machine's memory, which a trial must not fill.
        longest = "65536" if machine.trial else "max"
        wish = ("--ctx", longest, "-ctk", kv_type, "-ctv", kv_type, *machine.ours)
        planned = plan(machine, path, *wish)
        gpu = planned["devices"][0]
        held = next(one for one in checked(machine, path, *wish) if one["name"] == gpu["name"])
        allocated = sum(held["allocated"].values())
        row(
            kv_type,
            f"{planned['n_ctx']:,}",
            f"{gpu['used_bytes'] / GIB:.2f} GiB",
            f"{allocated / GIB:.2f} GiB",
            f"{(gpu['free_bytes'] - allocated) / GIB:.2f} GiB",
            held["driver"],
        )


def in_less(
    section: Section, machine: Machine, path: Path, nbytes: int, arguments: argparse.Namespace
) -> None:
    """The plan's placement, whole layers and ``--fit``, with the same memory."""
    tests = [
        "-p", arguments.prompt, "-n", "16" if machine.trial else "64",
        "-r", arguments.repetitions, "-t", str(machine.threads),
    ]  # fmt: skip
    wish = ("--ctx", "8192")
    with machine.held_to(nbytes) as described:
        where = (*wish, *(described or machine.ours))
        planned = plan(machine, path, *where)
        layers = most_layers(machine, path, planned, where)
        margin = planned["devices"][0]["kept_free_bytes"]
        if machine.trial:
            # The worker has all of this machine's memory: --fit must leave the rest free.
            margin = plan(machine, path, *machine.ours)["devices"][0]["free_bytes"] - nbytes
        section.add("", f"Plan: {summary(planned)}.")
        row = section.table("placement", "prompt, tokens/s", "decode, tokens/s", "plan's estimate")

        def add(name: str, records: list[dict[str, Any]], of: dict[str, Any] | None = None) -> None:
            expected = of and of["estimated_decode_tokens_per_second"]
            row(name, *(rate(record) for record in records), f"{expected:.1f}" if expected else "")

        flags = (*tests, *placing(planned), *machine.ours)
        add("the plan's", our_bench(path, *flags, timeout=machine.time.left), planned)
        flags = (*tests, "-ngl", str(layers), *machine.peer)
        by_layers = llama_bench(path, *flags, timeout=machine.time.left)
        add(f"-ngl {layers}", by_layers, plan(machine, path, *where, "-ngl", str(layers)))
        flags = (*tests, "-fitt", str(margin >> 20), "-fitc", "8192", *machine.peer)
        add("--fit", llama_bench(path, *flags, timeout=machine.time.left))


def most_layers(machine: Machine, path: Path, planned: dict[str, Any], where: Sequence[str]) -> int:
    """The largest number of whole layers that fit according to the plan."""
    fitting, too_many = 0, planned["n_layer"] + 2
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        gpu = plan(machine, path, *where, "-ngl", str(middle))["devices"][0]
        fitting, too_many = (middle, too_many) if gpu["left_bytes"] >= 0 else (fitting, middle)
    return fitting


def placing(planned: dict[str, Any]) -> list[str]:
    """The flags of the plan's placement."""
    placement = planned["placement"]
    flags = ["-ngl", str(placement["n_gpu_layers"]), "-ub", str(planned["n_ubatch"])]
    for pattern, device in placement["overrides"]:
        flags += ["-ot", f"{pattern}={device}"]
    return flags + ["-nkvo"] * (not placement["offload_kqv"])


def plan(machine: Machine, path: Path, *flags: str) -> dict[str, Any]:
    """The JSON of `llama4 plan`, whether the model fits or not."""
    return command(machine, "plan", str(path), "--json", *flags)


def checked(machine: Machine, path: Path, *flags: str) -> list[dict[str, Any]]:
    """What `llama4 plan --check` says of each device; ``driver`` is what nvidia-smi does of it."""
    with Peak() as peak:
        record = command(machine, "plan", str(path), "--check", "--json", *flags)
    return [{**one, "driver": "" if one["name"] == "CPU" else peak.text} for one in record["check"]]


def command(machine: Machine, *words: str) -> dict[str, Any]:
    """The JSON that a `llama4` command prints."""
    line = [str(Path(sys.executable).with_name("llama4")), *words]
    result = subprocess.run(line, capture_output=True, text=True, timeout=machine.time.left)
    record: dict[str, Any] = json.loads(result.stdout or '{"error": "nothing was printed"}')
    if "error" in record:
        sys.exit(f"{shlex.join(line)} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return record


def summary(planned: dict[str, Any]) -> str:
    """Context, KV cache type and the memory of each device, in one line."""
    used = ", ".join(
        f"{device['name']} {device['used_bytes'] / GIB:.2f} GiB"
        for device in planned["devices"]
        if device["used_bytes"]
    )
    return f"{planned['n_ctx']:,} tokens of {planned['kv_type']}: {used}"


def test_name(record: dict[str, Any]) -> str:
    """llama-bench's name for a test."""
    name = f"pp{record['n_prompt']}" if record["n_prompt"] else f"tg{record['n_gen']}"
    return f"{name} @ d{record['n_depth']}" if record["n_depth"] else name


def rate(record: dict[str, Any]) -> str:
    """Tokens a second, with the deviation."""
    return f"{record['avg_ts']:.1f} ± {record['stddev_ts']:.1f}"


if __name__ == "__main__":
    main()

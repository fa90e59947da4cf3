"""Experts on the CPU compared with whole layers on the CPU, with equal memory on the device.

    python -m benchmarks.placement [--layers 6] [--recipe int4] [--generate 16]

Makes a slice of Scout (all widths, a few layers, random weights) and gives a worker on the loopback
interface, which llama.cpp takes for a GPU, the same memory in two ways:

- experts on the CPU: everything else of all layers is on the device, with all KV caches, and,
  tensor by tensor from the first layer on, as many experts as the comparison needs;
- layers on the CPU: on the device are the output matrix and as many of the last layers as fit
  (``-ngl``), with their KV caches. Single tensors of the layer before them, whose KV cache stays on
  the CPU, fill the rest.

Layers and experts are too large for equal sizes by chance. The comparison uses the smallest number
of experts for which at most four tensors of one layer fill the rest, so that both placements remain
what their names say. Equal means within 1% of all that llama.cpp allocates on the device: weights,
KV caches and compute buffers. Without such a pair nothing is measured.

A proxy counts the bytes between CPU and device for each token; times are measured without the
proxy. The bytes of weights that the CPU must read for each token are printed too: they are the
limit when the device is a real GPU. Here device and CPU share the cores, so the times show the cost
of the traffic, not the gain of a GPU.
"""

from __future__ import annotations

import argparse
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.peer import OUT
from llama4_edge.convert.blueprint import Blueprint, BlueprintTensor, blueprint
from llama4_edge.measure.speed_engine import BenchEngine
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.planner.geometry import open_geometry
from llama4_edge.planner.layout import device_loads
from llama4_edge.planner.machine import MachineDevice
from llama4_edge.runtime.bindings.memory import measure
from llama4_edge.runtime.placement import Placement, cpu_moe_overrides
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.runtime.workers.worker import local_workers


class CountingProxy:
    """Forwards connections to `endpoint` and counts the bytes in each direction."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.split(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.to_device = self.from_device = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                device = socket.create_connection(self._target)
                for connection in (client, device):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, name in (
                    (client, device, "to_device"),
                    (device, client, "from_device"),
                ):
                    threading.Thread(
                        target=self._forward, args=(source, sink, name), daemon=True
                    ).start()

    def _forward(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Accept no further connections."""
        self._server.close()


@contextmanager
def counted(endpoint: str) -> Iterator[CountingProxy]:
    """A proxy that is closed at the end of the block."""
    proxy = CountingProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


DEVICE = "RPC0"
"""The worker, as llama.cpp's placements name it."""

TOLERANCE = 0.01
"""The largest difference of the two, relative to the larger."""

_MOST_EXTRA = 4
"""The most single tensors that fill the memory that whole layers leave."""


@dataclass(frozen=True)
class Way:
    """A placement, further single tensors on the device, and the bytes of both there."""

    name: str
    base: Placement
    extra: tuple[str, ...]
    device_bytes: int

    @property
    def placement(self) -> Placement:
        """The placement with the single tensors."""
        return with_extra(self.base, self.extra)


def with_extra(base: Placement, extra: Iterable[str]) -> Placement:
    """A placement with single tensors moved to the device."""
    overrides = tuple((f"^{re.escape(name)}$", DEVICE) for name in extra)
    return replace(base, overrides=(*overrides, *base.overrides))


def main() -> None:
    """Find the placements of equal memory, then measure each."""
    arguments = parse_arguments()
    design = blueprint(
        arguments.model, recipe=arguments.recipe, layers=arguments.layers, synthetic=True
    )
    settings = EngineSettings(
        n_ctx=arguments.prompt + 4 * arguments.generate, n_threads=arguments.threads,
        n_threads_batch=arguments.threads, n_outputs=1, n_ubatch=arguments.prompt,
    )  # fmt: skip
    with local_workers(1, n_threads=arguments.threads) as (endpoint,):
        with TemporaryDirectory() as directory:
            header = design.write_header(Path(directory) / "header.gguf")
            everything = device_bytes(header, settings, endpoint)
            ways = equal_ways(header, design, settings, endpoint)
            read = [cpu_bytes_a_token(header, settings, way) for way in ways]
        print(f"everything on the device: {gib(everything)}")
        for way, count in zip(ways, read, strict=True):
            extra = f", but not {', '.join(way.extra)}" if way.extra else ""
            print(
                f"{way.name}{extra}: {gib(way.device_bytes)} on the device, the CPU reads "
                f"{count / 2**20:.0f} MiB of weights a token"
            )
        check_equal("beforehand", [way.device_bytes for way in ways])
        if arguments.dry_run:
            return
        with synthetic_file(design, arguments.directory, keep=True) as path:
            print(f"{path.name}, {gib(design.nbytes)}", flush=True)
            allocated = [measured(path, settings, way, endpoint, arguments) for way in ways]
        check_equal("allocated", allocated)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="scout")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU and of the worker each")
    parser.add_argument("--directory", type=Path, default=OUT)
    parser.add_argument("--dry-run", action="store_true", help="only find the placements")
    return parser.parse_args()


def gib(count: int) -> str:
    """Bytes in GiB, with three decimals."""
    return f"{count / 2**30:.3f} GiB"


def check_equal(when: str, sizes: Sequence[int]) -> None:
    """Print the memory of both placements and their ratio; exit if they are not equal."""
    experts, layers = sizes
    print(f"device memory {when}: {experts:,} and {layers:,} bytes, ratio {experts / layers:.4f}")
    if relative_difference(experts, layers) > TOLERANCE:
        sys.exit(f"the two differ by more than {TOLERANCE:.0%}: not comparable")


def relative_difference(a: int, b: int) -> float:
    """The difference, relative to the larger."""
    return abs(a - b) / max(a, b)


def equal_ways(
    header: Path, design: Blueprint, settings: EngineSettings, endpoint: str
) -> tuple[Way, Way]:
    """The two placements of equal memory with the fewest experts on the device."""

    def way(name: str, base: Placement, extra: tuple[str, ...]) -> Way:
        placed = replace(settings, placement=with_extra(base, extra))
        return Way(name, base, extra, device_bytes(header, placed, endpoint))

    whole = [
        way(f"layers on the CPU (-ngl {count})", Placement(n_gpu_layers=count), ())
        for count in range(design.config.hparams.n_layer + 1)
    ]
    on_cpu = Placement(overrides=cpu_moe_overrides())
    names = [tensor.name for tensor in design.tensors if tensor.role == "expert"]
    nearest = 1.0
    for count in range(len(names)):
        experts = way("experts on the CPU", on_cpu, tuple(names[:count]))
        fitting = [placed for placed in whole if placed.device_bytes <= experts.device_bytes]
        if not fitting:
            continue
        most = fitting[-1]
        extra = filling(design, most, experts.device_bytes)
        layers = way(most.name, most.base, extra)
        off = relative_difference(experts.device_bytes, layers.device_bytes)
        nearest = min(nearest, off)
        if off <= TOLERANCE:
            return experts, layers
    sys.exit(
        f"no two placements take the same memory, the nearest are {nearest:.1%} apart: try another "
        "number of --layers"
    )


def filling(design: Blueprint, layers: Way, device_bytes: int) -> tuple[str, ...]:
    """The fewest tensors of the next layer that fill the device up to `device_bytes`.

    They must fit within half of ``TOLERANCE``; otherwise the closest ones are returned.
    """
    # The output matrix counts as a layer, and goes to the device first.
    following = f"blk.{design.config.hparams.n_layer - layers.base.n_gpu_layers}."
    tensors = [tensor for tensor in design.tensors if tensor.name.startswith(following)]
    left = device_bytes - layers.device_bytes

    def rank(choice: tuple[BlueprintTensor, ...]) -> tuple[bool, int, int]:
        off = abs(left - sum(tensor.nbytes for tensor in choice))
        near = off <= device_bytes * TOLERANCE / 2
        return not near, len(choice) if near else 0, off

    best = min(
        (some for n in range(_MOST_EXTRA + 1) for some in combinations(tensors, n)), key=rank
    )
    return tuple(tensor.name for tensor in best)


def device_bytes(path: Path, settings: EngineSettings, endpoint: str) -> int:
    """The bytes that llama.cpp would allocate on the device."""
    with connect((endpoint,)) as workers:
        return measure(path, settings, workers.native_devices).on(DEVICE).total


def cpu_bytes_a_token(path: Path, settings: EngineSettings, way: Way) -> int:
    """Bytes of weights in main memory that a token reads; of the experts only the active ones."""
    device = MachineDevice(DEVICE, DEVICE, "GPU", None, None, None, None)
    with open_geometry(path) as geometry:
        placed = replace(settings, placement=way.placement)
        return device_loads(geometry, placed, [device])[-1].read_bytes


def measured(
    path: Path, settings: EngineSettings, way: Way, endpoint: str, arguments: argparse.Namespace
) -> int:
    """Print traffic and times, and return the bytes that llama.cpp allocated on the device."""
    placed = replace(settings, placement=way.placement)
    to_device, from_device = traffic(path, placed, endpoint, arguments)
    allocated, prompt, token = timed(path, placed, endpoint, arguments)
    print(
        f"{way.name}: {to_device:,.0f} bytes a token to the device and {from_device:,.0f} back; "
        f"{token * 1e3:.1f} ms a token, prompt of {arguments.prompt} in {prompt:.2f} s",
        flush=True,
    )
    return allocated


def traffic(
    path: Path, settings: EngineSettings, endpoint: str, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Bytes to the device and from it, for each decoded token."""
    with (
        counted(endpoint) as proxy,
        BenchEngine(path, replace(settings, workers=(proxy.endpoint,))) as engine,
    ):
        decode(engine, range(4))
        to_device, from_device = proxy.to_device, proxy.from_device
        decode(engine, range(arguments.generate))
        to_device, from_device = proxy.to_device - to_device, proxy.from_device - from_device
    return to_device / arguments.generate, from_device / arguments.generate


def timed(
    path: Path, settings: EngineSettings, endpoint: str, arguments: argparse.Namespace
) -> tuple[int, float, float]:
    """Bytes on the device, seconds of the prompt, and the median seconds of a token."""
    with BenchEngine(path, replace(settings, workers=(endpoint,))) as engine:
        prompt = [token * 37 % engine.n_vocab for token in range(arguments.prompt)]
        engine.extend(prompt)
        engine.clear()
        started = time.perf_counter()
        engine.extend(prompt)
        engine.synchronize()
        seconds = time.perf_counter() - started
        allocated = engine.memory().on(DEVICE).total
        return allocated, seconds, median(decode(engine, range(arguments.generate)))


def decode(engine: BenchEngine, tokens: Sequence[int]) -> list[float]:
    """The seconds of each token."""
    seconds = []
    for token in tokens:
        started = time.perf_counter()
        engine.append(token * 7919 % engine.n_vocab)
        engine.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()

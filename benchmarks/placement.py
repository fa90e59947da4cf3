"""Experts on the CPU beside whole layers on the CPU, with the same memory on the device.

    python benchmarks/placement.py [--layers 6] [--recipe int4] [--generate 16]

Makes a slice of Scout (all widths, a few layers, random weights) and gives a worker on the loopback
interface, which llama.cpp takes for a GPU, the same memory in two ways: everything but the experts
of all layers, or as many whole layers as fit into that. Counts the bytes that travel between the
CPU and the device for each token, in a proxy between the two, and the time without the proxy; and
says how many bytes of weights the CPU must read for each token, which is what limits it when the
device is a real GPU. Device and CPU share the cores here, so that the times show what the traffic
costs and not what a GPU would gain.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peer import OUT  # noqa: E402 (path set above)
from llama4_edge.convert.blueprint import Blueprint, blueprint  # noqa: E402
from llama4_edge.convert.synthetic import synthetic_file  # noqa: E402
from llama4_edge.runtime.bench_engine import BenchEngine  # noqa: E402
from llama4_edge.runtime.memory import measure  # noqa: E402
from llama4_edge.runtime.placement import Placement, cpu_moe_overrides  # noqa: E402
from llama4_edge.runtime.remote import connect  # noqa: E402
from llama4_edge.runtime.settings import EngineSettings  # noqa: E402
from llama4_edge.runtime.worker import local_workers  # noqa: E402


class CountingProxy:
    """Passes connections on to `endpoint` and counts what goes each way."""

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
                for one in (client, device):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, name in (
                    (client, device, "to_device"),
                    (device, client, "from_device"),
                ):
                    threading.Thread(
                        target=self._pass_on, args=(source, sink, name), daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Take no further connections."""
        self._server.close()


@contextmanager
def counted(endpoint: str) -> Iterator[CountingProxy]:
    """A proxy for the time of the block."""
    proxy = CountingProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


@dataclass(frozen=True)
class Way:
    """A placement with a name."""

    name: str
    placement: Placement


def main() -> None:
    """Find the placements of equal memory, then measure each."""
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
    arguments = parser.parse_args()
    drawn = blueprint(
        arguments.model, recipe=arguments.recipe, layers=arguments.layers, synthetic=True
    )
    settings = EngineSettings(
        n_ctx=arguments.prompt + 4 * arguments.generate, n_threads=arguments.threads,
        n_threads_batch=arguments.threads, n_outputs=1, n_ubatch=arguments.prompt,
    )  # fmt: skip
    with (
        synthetic_file(drawn, arguments.directory, keep=True) as path,
        local_workers(1, n_threads=arguments.threads) as (endpoint,),
    ):
        print(f"{path.name}, {drawn.nbytes / 2**30:.1f} GiB")
        everything, ways = equal_ways(path, drawn, settings, endpoint)
        print(f"everything on the device: {everything / 2**30:.2f} GiB")
        for way in ways:
            used = device_bytes(path, replace(settings, placement=way.placement), endpoint)
            print(f"{way.name}: {used / 2**30:.2f} GiB on the device", end="; ")
            read = cpu_bytes_a_token(drawn, way.placement)
            moved = traffic(path, settings, way, endpoint, arguments)
            print(
                f"the CPU reads {read / 2**20:.0f} MiB of weights a token; "
                f"to the device {moved[0]:,.0f} and back {moved[1]:,.0f} bytes a token",
                flush=True,
            )
            times = timed(path, settings, way, endpoint, arguments)
            print(
                f"  {times[1] * 1e3:.1f} ms a token, prompt of {arguments.prompt} in "
                f"{times[0]:.2f} s",
                flush=True,
            )


def equal_ways(
    path: Path, drawn: Blueprint, settings: EngineSettings, endpoint: str
) -> tuple[int, list[Way]]:
    """What everything takes, and the two placements: the layers take no more than the rest does."""
    everything = device_bytes(path, settings, endpoint)
    experts = Way("experts on the CPU", Placement(overrides=cpu_moe_overrides()))
    room = device_bytes(path, replace(settings, placement=experts.placement), endpoint)
    fitting = [
        count
        for count in range(drawn.config.n_layer + 1)
        if device_bytes(path, replace(settings, placement=Placement(n_gpu_layers=count)), endpoint)
        <= room
    ]
    layers = Way(f"-ngl {fitting[-1]}", Placement(n_gpu_layers=fitting[-1]))
    return everything, [experts, layers]


def device_bytes(path: Path, settings: EngineSettings, endpoint: str) -> int:
    """What llama.cpp would allocate there."""
    with connect((endpoint,)) as workers:
        return measure(path, settings, workers.targets).on("RPC0").total


def cpu_bytes_a_token(drawn: Blueprint, placement: Placement) -> int:
    """Weights in main memory that a token reads; of the experts, those that it visits."""
    config = drawn.config
    # The output matrix counts as one layer more, and goes to the device first.
    first = config.n_layer + 1 - placement.n_gpu_layers if placement.n_gpu_layers >= 0 else 0
    total = 0
    for tensor in drawn.tensors:
        layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else None
        expert = tensor.role == "expert"
        if layer is None:
            on_cpu = tensor.name.startswith("output") and placement.n_gpu_layers == 0
        else:
            on_cpu = layer < first or (expert and bool(placement.overrides))
        if on_cpu:
            share = config.n_expert_used / config.n_expert if expert else 1
            total += round(tensor.nbytes * share)
    return total


def traffic(
    path: Path, settings: EngineSettings, way: Way, endpoint: str, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Bytes that travel for each token that is decoded: to the device, and from it."""
    with counted(endpoint) as proxy:
        placed = replace(settings, placement=way.placement, workers=(proxy.endpoint,))
        with BenchEngine(path, placed) as engine:
            decode(engine, range(4))
            before = proxy.to_device, proxy.from_device
            decode(engine, range(arguments.generate))
            after = proxy.to_device, proxy.from_device
    return tuple(
        (end - begin) / arguments.generate for begin, end in zip(before, after, strict=True)
    )  # type: ignore[return-value]


def timed(
    path: Path, settings: EngineSettings, way: Way, endpoint: str, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Seconds that the prompt takes, and the median of a token."""
    placed = replace(settings, placement=way.placement, workers=(endpoint,))
    with BenchEngine(path, placed) as engine:
        prompt = [token * 37 % engine.n_vocab for token in range(arguments.prompt)]
        engine.extend(prompt)
        engine.clear()
        started = time.perf_counter()
        engine.extend(prompt)
        engine.synchronize()
        seconds = time.perf_counter() - started
        return seconds, median(decode(engine, range(arguments.generate)))


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

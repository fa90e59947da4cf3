"""The server beside llama-server: rates, first tokens and pauses, for many people at a time.

    python -m benchmarks.server MODEL [--parallel 8] [--threads N] [--rounds 3]
    python -m benchmarks.server --random [--layers 8] [--hidden 1024]

Both have the same file, slots, context, threads, libraries, and greedy answers. They are started
anew for each round of each scenario, in turn, each first in every second round; the client is a
process of its own that does little (`benchmarks.http_client`).

- `clients`: 1, 4, 8 and 16 people, each with questions of their own, one after the other.
- `shared`: conversations that begin with one long system prompt and take turns; twice as many as
  there are slots.
- `beside`: short answers, again and again, while others send long prompts.
- `long`: conversations about a document of more than 8192 tokens each, which take turns.

A row is a measure of the best round of each server, their ratio, and the median of the ratios of
the rounds; above 1 ours is better. `pause` is the time between two pieces of an answer; a piece may
have several tokens, which `token` counts apart: the time from the first piece to the last by the
number of tokens. `read` is how many tokens of prompts were not in a cache.

With --random the model has random weights, Meta's vocabulary, and more work for each token than the
one in the box; its answers end at --generate. --only names scenarios, --servers who is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil

from benchmarks.http_client import Answer, Job, Script, Step
from benchmarks.peer import OUT, peer_environment, peer_tool
from demo.training.lessons.haystack import hay
from demo.training.lessons.skills import NAMES, THINGS, TRAITS
from llama4_edge.system.cores import decoding_threads

HOST = "127.0.0.1"
_START_SECONDS = 300.0
_LOAD_SECONDS = 0.05
# Tokens of a sentence of `hay`, about, in the vocabulary of the model in the box.
_HAY_TOKENS = 11

# What a scenario gives, by name.
Measures = dict[str, float]

# How the names end of what is better when it is greater.
_GREATER = ("tokens/s",)


@dataclass(frozen=True)
class Load:
    """How a server is started, and how much it is asked."""

    model: Path
    n_parallel: int
    n_threads: int
    n_generate: int
    size: float


@dataclass(frozen=True)
class Scenario:
    """What is asked, and the context that it takes."""

    name: str
    n_ctx: int
    scripts: Sequence[Script]


# --- what is asked


def words(rng: random.Random, count: int) -> str:
    """Words that a question asks to be repeated."""
    return " ".join(rng.sample([*NAMES, *THINGS, *TRAITS], count))


def question(rng: random.Random) -> str:
    """A question that takes an answer of some length."""
    return f"Repeat: {words(rng, 28)}"


def text(rng: random.Random, tokens: int) -> str:
    """About so many tokens of sentences."""
    return " ".join(hay(rng) for _ in range(tokens // _HAY_TOKENS))


def clients(load: Load, count: int) -> Scenario:
    """So many people, each with some questions that share nothing."""
    n_questions = max(2, round(48 * load.size) // count)

    def steps(number: int) -> list[Step]:
        rng = random.Random(f"clients {number}")
        return [
            Step(f"{number}.{n}", f"{text(rng, 100)} {question(rng)}", load.n_generate)
            for n in range(n_questions)
        ]

    scripts = [Script(f"person {n}", steps(n)) for n in range(count)]
    return Scenario(f"clients {count}", 1024, scripts)


def shared(load: Load) -> Scenario:
    """People with conversations that begin alike, and take turns."""
    system = text(random.Random("system"), round(3000 * load.size))
    n_people, n_each, n_turns = max(load.n_parallel // 2, 1), 4, 3

    def steps(number: int) -> list[Step]:
        rng = random.Random(f"shared {number}")
        return [
            Step(f"{number}.{each}", f"{text(rng, 60)} {question(rng)}", 32, system)
            for _ in range(n_turns)
            for each in range(n_each)
        ]

    scripts = [Script(f"person {n}", steps(n)) for n in range(n_people)]
    return Scenario("shared", round(3000 * load.size) + 2048, scripts)


def beside(load: Load) -> Scenario:
    """Short answers beside long prompts."""
    n_tokens = round(6000 * load.size)

    def short(number: int) -> list[Step]:
        rng = random.Random(f"short {number}")
        return [Step(f"s{number}.{n}", question(rng), load.n_generate) for n in range(4)]

    def long(number: int) -> list[Step]:
        rng = random.Random(f"long {number}")
        return [Step(f"l{number}.{n}", f"{text(rng, n_tokens)} Hello", 8) for n in range(4)]

    n_long = max(load.n_parallel // 4, 1)
    n_short = max(load.n_parallel - n_long, 1)
    scripts = [Script("short", short(n), repeats=True) for n in range(n_short)]
    scripts += [Script("long", long(n)) for n in range(n_long)]
    return Scenario("beside", n_tokens + 2048, scripts)


def long(load: Load) -> Scenario:
    """Conversations past a chunk of attention, more of them than slots, in turn."""
    n_tokens = 8192 + round(4000 * load.size)
    n_conversations, n_turns = load.n_parallel + 1, 3
    rng = random.Random("long")
    documents = [text(rng, n_tokens) for _ in range(n_conversations)]
    steps = [
        Step(f"{n}", f"{documents[n]} Hello" if turn == 0 else question(rng), 32)
        for turn in range(n_turns)
        for n in range(n_conversations)
    ]
    return Scenario("long", n_tokens + 4096, [Script("person", steps)])


SCENARIOS: Mapping[str, Callable[[Load], Scenario]] = {
    "clients 1": lambda load: clients(load, 1),
    "clients 4": lambda load: clients(load, 4),
    "clients 8": lambda load: clients(load, 8),
    "clients 16": lambda load: clients(load, 16),
    "shared": shared,
    "beside": beside,
    "long": long,
}


# --- what is measured


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which lies that part of all; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def measures(answers: Sequence[Answer]) -> Measures:
    """What the answers of one kind of script say together."""
    pauses = [later - earlier for one in answers for earlier, later in pairwise(one.pieces)]
    firsts = [one.pieces[0] - one.begun for one in answers if one.pieces]
    tokens = [
        (one.pieces[-1] - one.pieces[0]) / (one.completion_tokens - 1)
        for one in answers
        if len(one.pieces) > 1
    ]
    seconds = max(one.ended for one in answers) - min(one.begun for one in answers)
    return {
        "tokens/s": sum(one.completion_tokens for one in answers) / seconds,
        "first token, median ms": 1e3 * median(firsts),
        "first token, 99th ms": 1e3 * percentile(firsts, 0.99),
        "token, median ms": 1e3 * median(tokens),
        "pause, median ms": 1e3 * median(pauses),
        "pause, 99th ms": 1e3 * percentile(pauses, 0.99),
        "read, tokens": sum(one.prompt_tokens - one.cached_tokens for one in answers),
    }


def scenario_measures(scenario: Scenario, answers: Sequence[Answer]) -> Measures:
    """Those of all answers, or apart where the scripts are of two kinds."""
    kinds = sorted({one.script for one in answers if one.script in ("short", "long")})
    if not kinds:
        later = [
            one
            for number, one in enumerate(answers)
            if any(one.conversation == other.conversation for other in answers[:number])
        ]
        found = measures(answers)
        if later:
            firsts = [one.pieces[0] - one.begun for one in later if one.pieces]
            found["later turns' first token, median ms"] = 1e3 * median(firsts)
        return found
    return {
        f"{kind}: {name}": value
        for kind in kinds
        for name, value in measures([one for one in answers if one.script == kind]).items()
    }


# --- servers


def command_ours(load: Load, n_ctx: int, port: int) -> list[str]:
    """How ours is started."""
    llama4 = str(Path(sys.executable).with_name("llama4"))
    return [
        llama4, "serve", str(load.model), "--port", str(port), "-np", str(load.n_parallel),
        "-c", str(n_ctx), "-t", str(load.n_threads),
    ]  # fmt: skip


def command_peer(load: Load, n_ctx: int, port: int) -> list[str]:
    """How llama-server is started: its context is that of all slots."""
    return [
        str(peer_tool("llama-server")), "-m", str(load.model), "--port", str(port),
        "-np", str(load.n_parallel), "-c", str(n_ctx * load.n_parallel),
        "-t", str(load.n_threads), "--no-webui", "--jinja",
    ]  # fmt: skip


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[psutil.Process]:
    """A server that answers, stopped at the end of the block."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=peer_environment(), stdout=log, stderr=log)
        try:
            until = time.monotonic() + _START_SECONDS
            while not is_healthy(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"{shlex.join(command)} does not start:\n{log.read()[-3000:]}")
                time.sleep(_LOAD_SECONDS)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_healthy(port: int) -> bool:
    """Whether a server answers, and has loaded its model."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, scripts: Sequence[Script]) -> list[Answer]:
    """What came of the scripts, asked by another process."""
    job = json.dumps(asdict(Job(HOST, port, scripts)))
    command = [sys.executable, "-m", "benchmarks.http_client"]
    done = subprocess.run(command, input=job, capture_output=True, text=True, cwd=OUT.parents[1])
    if done.returncode:
        sys.exit(f"the client failed: {done.stderr[-2000:]}")
    return [Answer(**one) for one in json.loads(done.stdout)]


def measured(
    load: Load, scenario: Scenario, command: Callable[[Load, int, int], list[str]]
) -> Measures:
    """What one server gives in one round."""
    port = free_port()
    with running(command(load, scenario.n_ctx, port), port) as process:
        ask(port, [Script("warm", [Step("warm", "Hello", 4)])])
        before = processor_seconds(process)
        answers = ask(port, scenario.scripts)
        seconds = processor_seconds(process) - before
        resident = process.memory_info().rss / 2**20
    return {
        **scenario_measures(scenario, answers),
        "processor, s": seconds,
        "resident, MiB": resident,
    }


def processor_seconds(process: psutil.Process) -> float:
    """What a process has taken of the cores."""
    times = process.cpu_times()
    return float(times.user + times.system)


# --- the comparison


SERVERS: Mapping[str, Callable[[Load, int, int], list[str]]] = {
    "ours": command_ours,
    "llama-server": command_peer,
}


def compare(load: Load, scenario: Scenario, rounds: int, servers: Sequence[str]) -> None:
    """Measure all in turn, and print a row for each measure."""
    every: dict[str, list[Measures]] = {name: [] for name in servers}
    for number in range(rounds):
        for name in servers[:: -1 if number % 2 else 1]:
            every[name].append(measured(load, scenario, SERVERS[name]))
    for measure in every[servers[0]][0]:
        print(row(scenario.name, measure, [[one[measure] for one in every[n]] for n in servers]))
    sys.stdout.flush()


def row(scenario: str, measure: str, values: Sequence[Sequence[float]]) -> str:
    """A line of the table: the best of ours and of the peer, and how they compare."""
    greater = measure.endswith(_GREATER)
    best = [max(every) if greater else min(every) for every in values]
    cells = [scenario, measure, *(f"{value:,.2f}" for value in best)]
    if len(values) == 2:
        pairs = list(zip(*values, strict=True))
        ratios = [quotient(ours, peer, greater) for ours, peer in pairs]
        cells.append(f"{quotient(best[0], best[1], greater):.2f} ({median(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


def quotient(ours: float, peer: float, greater: bool) -> float:
    """How many times as good ours is."""
    above, below = (ours, peer) if greater else (peer, ours)
    return above / below if below else float(above == below) or float("inf")


def random_model(directory: Path, hidden: int, layers: int) -> Path:
    """A model of random weights with Meta's vocabulary, in int4; made once."""
    from demo.checkpoint import Geometry, write_checkpoint
    from llama4_edge import convert
    from tests.reference.real_tokenizer import VOCABULARY, write_real_tokenizer

    path = directory / f"random-{hidden}-{layers}-int4.gguf"
    if not path.is_file():
        geometry = Geometry(
            hidden=hidden, layers=layers, heads=hidden // 64, kv_heads=hidden // 256,
            expert_ffn=2 * hidden, dense_ffn=4 * hidden, vocabulary=VOCABULARY, vision=None,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(dir=directory) as name:
            tokenizer = write_real_tokenizer(Path(name) / "tokenizer")
            checkpoint = write_checkpoint(Path(name) / "it", geometry, tokenizer=tokenizer)
            convert(checkpoint, path, recipe="int4")
    return path


def main() -> None:
    """Compare in each scenario."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--random", action="store_true", help="a model of random weights")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the random model")
    parser.add_argument("--layers", type=int, default=8, help="of the random model")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--threads", type=int, default=decoding_threads())
    parser.add_argument("--generate", type=int, default=128, help="tokens of an answer, at most")
    parser.add_argument("--size", type=float, default=1.0, help="of prompts, and how many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas")
    parser.add_argument("--servers", default=",".join(SERVERS), help="who is measured")
    arguments = parser.parse_args()
    if (arguments.model is None) != arguments.random:
        parser.error("name a model, or --random")
    OUT.mkdir(exist_ok=True)
    model = arguments.model or random_model(OUT, arguments.hidden, arguments.layers)
    load = Load(model, arguments.parallel, arguments.threads, arguments.generate, arguments.size)
    size = f"{model.stat().st_size / 1e6:.0f} MB"
    cores = f"{load.n_threads} threads, {os.cpu_count()} cores"
    print(f"{model.name}, {size}, {load.n_parallel} slots, {cores}, {arguments.rounds} rounds\n")
    servers = arguments.servers.split(",")
    heads = ["scenario", "measure", *servers, *["ratio (median)"] * (len(servers) == 2)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in arguments.only.split(","):
        compare(load, SCENARIOS[name](load), arguments.rounds, servers)


if __name__ == "__main__":
    main()

"""Every code block of the README and of docs/ does what it says, and its tables hold.

The pages name files of a reader: `shelf` is a directory that has them, all made of the model in the
box. Commands are parsed for real, and run there unless `NOT_RUN` says why not. Python blocks of a
page run in order, as one program.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import llama4_edge
from demo.training.lessons.picture import Picture
from llama4_edge import Conversation
from llama4_edge.cli import main
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.quant.encode import NATIVE, decode_blocks, encode_rows
from llama4_edge.quant.types import TYPES
from llama4_edge.runtime.bindings.build import BACKENDS, METAL
from llama4_edge.runtime.workers.worker import local_workers
from tests.adapters import adapter_of, control_vector_of, halves, write_peft
from tests.server.running import running_server
from tests.sessions import write

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"docs/reference/commands.md"}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if str(path.relative_to(ROOT)) not in GENERATED
)
SCOUT = "Llama-4-Scout-17B-16E-Instruct"
MODELS = (
    "scout.gguf", "scout-bf16.gguf", "scout-int4.gguf", "scout-q4_0.gguf",
    "demo/out/llama-4-tiny-int4.gguf",
)  # fmt: skip
# As long as two chunks of `compare`.
TEXT = "Ana lives by the sea, and Ben in the old lighthouse on the hill. " * 60
CHECKPOINTS = (SCOUT, f"meta-llama/{SCOUT}", "demo/Llama-4-Tiny")
ADDRESSES = ("192.168.0.7:50052", "192.168.0.8:50052", "127.0.0.1:50052")

# Parts of commands that are parsed but not run, and why.
NOT_RUN = {
    "llama4 worker": "serves until Ctrl-C",
    "llama4 serve": "the same",
    "llama4 pull": "needs a network",
    "org/adapter": "the same",
    "llama4 merge": "needs the parts that the command before writes",
    "-dev CUDA0,CUDA1": "needs two GPUs",
    r"blk\.(4[0-7])": "the model in the box has no layer 40",
    "bench --synthetic": "writes gigabytes",
    "--tools weather.py": "asks before each call",
}
# Other programs that the pages mention; what comes after them is not looked at.
PROGRAMS = {
    "eval", "hf", "pip", "jq", "git", "pre-commit", "curl", "openssl", "aider", "claude", "lm_eval",
    "docker", "open-webui",
}  # fmt: skip
# Where the pages find `llama4 serve`.
SERVER = "127.0.0.1:8080"
_SERVERS = re.compile(r"\b(127\.0\.0\.1|localhost):8080\b")


@dataclass(frozen=True)
class Block:
    """A code block of a page: its language and its text."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Shown:
    """A command of a console block, its words up to a pipe, and the lines that it prints."""

    page: str
    text: str
    words: tuple[str, ...]
    output: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(page, language, body) for language, body in fences]


def shown(block: Block) -> list[Shown]:
    """The commands of a console block: lines after a prompt, with the lines that continue them."""
    commands: list[tuple[str, list[str]]] = []
    open_line = False
    for line in block.text.splitlines():
        prompt = re.match(r"^[\w-]*\$ +", line)
        if open_line:
            text, output = commands.pop()
            commands.append((f"{text[:-1].rstrip()} {line.strip()}", output))
        elif prompt:
            commands.append((line[prompt.end() :], []))
        else:
            commands[-1][1].append(line)
        open_line = (prompt is not None or open_line) and line.endswith("\\")
    return [Shown(block.page, text, tuple(words(text)), tuple(output)) for text, output in commands]


def words(text: str) -> list[str]:
    """A command's words, without settings of the environment, up to a pipe or a comment."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    kept: list[str] = []
    for word in lexer:
        if word in ("|", "<", ">"):
            break
        if kept or not re.match(r"^[A-Z_]+=", word):
            kept.append(word)
    return kept


COMMANDS = [
    command
    for page in PAGES
    for block in blocks(page)
    if block.language == "console"
    for command in shown(block)
]
LLAMA4 = [command for command in COMMANDS if command.words[0] == "llama4"]
RUN = [command for command in LLAMA4 if not any(part in command.text for part in NOT_RUN)]


def text_of(command: Shown) -> str:
    return f"{command.page}: {command.text}"


@pytest.fixture(scope="session")
def demo_gguf(make_gguf: Callable[..., Path]) -> Path:
    return make_gguf(ROOT / "demo" / "Llama-4-Tiny", "int4")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the checkpoints of the pages, which is the current one."""
    for name in CHECKPOINTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / "demo" / "Llama-4-Tiny")
    for name in ("wiki.test.raw", "code.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    logger = logging.getLogger("llama4_edge")
    level, handlers = logger.level, list(logger.handlers)
    yield tmp_path
    logger.setLevel(level)
    logger.handlers = handlers


@pytest.fixture(scope="session")
def demo_projector(make_projector: Callable[..., Path]) -> Path:
    return make_projector(ROOT / "demo" / "Llama-4-Tiny")


@pytest.fixture(scope="session")
def demo_reference(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model in the box predicted of the text of the pages."""
    path = tmp_path_factory.mktemp("reference") / "scout.reference"
    llama4_edge.compare(demo_gguf, text=TEXT, save=path, n_threads=1)
    return path


@pytest.fixture(scope="session")
def demo_importance(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model in the box multiplies with while it reads the text of the pages."""
    path = tmp_path_factory.mktemp("importance") / "imatrix.gguf"
    llama4_edge.calibrate(demo_gguf, path, text=TEXT, n_threads=1)
    return path


@pytest.fixture
def full_shelf(
    shelf: Path,
    demo_gguf: Path,
    demo_projector: Path,
    demo_reference: Path,
    demo_importance: Path,
) -> Path:
    """The same with the GGUFs of the pages, a picture, a document, a session, predictions and
    activation statistics."""
    shutil.copy(demo_reference, shelf / "scout.reference")
    for name in ("imatrix.gguf", "scout.imatrix.gguf", "more.gguf"):
        shutil.copy(demo_importance, shelf / name)
    for name in MODELS:
        (shelf / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo_gguf, shelf / name)  # a conversion writes through links
        shutil.copy(demo_projector, (shelf / name).parent / "mmproj-f16.gguf")
    picture = Image.fromarray(Picture("blue", "star", 3, seed=11).pixels())
    for name in ("demo/out/picture.png", "photo.jpg"):
        picture.save(shelf / name)
    (shelf / "book.md").write_text("Ana lives by the sea.", encoding="utf-8")
    for name in ("poems.gguf", "law.gguf"):
        adapter_of(demo_gguf).write(shelf / name)
    control_vector_of(demo_gguf).write(shelf / "calm.gguf")
    checkpoint = ROOT / "demo" / "Llama-4-Tiny"
    for name in ("my-adapter", "one", "two"):
        weights = halves("model.layers.0.self_attn.q_proj", 256, 512)
        write_peft(shelf / name, weights, base_model_name_or_path=str(checkpoint))
    write(shelf / "book.l4s", talk=Conversation().user("Hello").assistant("Hi."))
    return shelf


@pytest.fixture(scope="session")
def server(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server over the model of the pages, with an adapter."""
    adapter = adapter_of(demo_gguf).write(tmp_path_factory.mktemp("adapter") / "poems.gguf")
    with (
        llama4_edge.Model(demo_gguf, n_ctx=4096, n_parallel=2, adapters=[adapter]) as model,
        running_server(model) as running,
    ):
        yield running.url.removeprefix("http://")


@pytest.fixture(scope="session")
def workers() -> Iterator[tuple[str, ...]]:
    with local_workers(2) as endpoints:
        yield endpoints


# --- the README


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_block_says_what_it_is() -> None:
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages <= {"console", "python", "text", "yaml", "json", "ini", "toml"}


def test_the_reference_has_every_exported_name() -> None:
    text = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    names = {line.split(".")[-1] for line in text.splitlines() if line.startswith("::: ")}
    errors = {name for name in llama4_edge.__all__ if name.endswith("Error")}
    assert set(llama4_edge.__all__) - {"__version__"} <= names | errors


def test_every_link_between_pages_leads_to_a_file() -> None:
    paths = [ROOT / page for page in (*PAGES, "CONTRIBUTING.md")]
    links = [
        (path, link.split("#")[0])
        for path in paths
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        if "://" not in link and not link.startswith("#")
    ]
    assert [link for path, link in links if not (path.parent / link).exists()] == []
    assert len(links) > 20


# --- commands


@pytest.mark.parametrize("command", LLAMA4, ids=text_of)
def test_a_command_of_the_pages_is_one_of_llama4s(command: Shown) -> None:
    top = click.Context(main, info_name="llama4")
    name, *arguments = command.words[1:]
    subcommand = main.get_command(top, name)
    assert subcommand is not None
    subcommand.make_context(name, arguments, parent=top)


@pytest.mark.parametrize("command", RUN, ids=text_of)
def test_a_command_of_the_pages_does_what_is_shown(
    command: Shown, full_shelf: Path, request: pytest.FixtureRequest
) -> None:
    arguments = list(command.words[1:])
    if "--workers" in arguments:
        endpoints = request.getfixturevalue("workers")
        addresses = dict(zip(ADDRESSES, (*endpoints, endpoints[0]), strict=True))
        arguments = [
            ",".join(addresses.get(part, part) for part in argument.split(","))
            for argument in arguments
        ]
    if arguments[0] in ("convert", "convert-lora"):
        arguments.append("--force")
    if arguments[0] == "calibrate":
        (full_shelf / arguments[arguments.index("-o") + 1]).unlink(missing_ok=True)
    if "--save" in arguments:
        (full_shelf / arguments[arguments.index("--save") + 1]).unlink()
    result = CliRunner().invoke(main, arguments, input="", catch_exceptions=False)
    # `plan` says with 1 that a model does not fit on this machine.
    assert result.exit_code in ((0, 1) if arguments[0] == "plan" else (0,)), result.stderr
    lines = iter([" ".join(line.split()) for line in result.stdout.splitlines()])
    for line in command.output:
        if line not in ("", "…"):
            assert " ".join(line.split()) in lines, line


OTHERS = [command for command in COMMANDS if command.words[0] != "llama4"]


@pytest.mark.parametrize("command", OTHERS, ids=text_of)
def test_other_commands_of_the_pages_name_what_is_there(command: Shown) -> None:
    program, *arguments = command.words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert arguments[0] in targets
    elif program in ("python", "torchrun"):
        if "-m" in arguments:
            module = arguments[arguments.index("-m") + 1]
            assert (
                module in ("pip", "mkdocs") or (ROOT / f"{module.replace('.', '/')}.py").is_file()
            )
        else:
            assert (ROOT / arguments[0]).is_file()
    else:
        assert program in PROGRAMS


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there")
def test_curl_gets_an_answer_as_the_pages_say(server: str) -> None:
    commands = [command for command in COMMANDS if command.words[0] == "curl"]
    assert commands
    for command in commands:
        words = [_SERVERS.sub(server, word) for word in command.words]
        done = subprocess.run([*words, "--fail", "--silent"], capture_output=True, check=True)
        answer = json.loads(done.stdout)
        assert answer.get("choices") or answer.get("output")


# --- settings of other programs


RECIPES_PAGE = "docs/reference/recipes.md"
SETTINGS = [
    block
    for page in PAGES
    for block in blocks(page)
    if block.language in ("yaml", "json", "toml") and block.page != RECIPES_PAGE
]


@pytest.mark.parametrize("block", SETTINGS, ids=lambda block: f"{block.page}: {block.language}")
def test_settings_of_other_programs_lead_to_the_server(block: Block) -> None:
    # Python 3.10 reads no TOML.
    read = {"yaml": yaml.safe_load, "json": json.loads, "toml": str}
    settings = read[block.language](block.text)
    assert f"http://{SERVER}/v1" in json.dumps(settings)


def test_the_recipe_file_of_the_page_is_one(tmp_path: Path) -> None:
    (block,) = (it for page in PAGES for it in blocks(page) if it.page == RECIPES_PAGE
                if it.language == "json")  # fmt: skip
    path = tmp_path / "recipe.json"
    path.write_text(block.text)
    assert planned("--recipe", str(path), "--gpu", "h200")["recipe"] == str(path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "llama4.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.+)$", text, flags=re.MULTILINE)
    name, *arguments = shlex.split(command)[1:]
    top = click.Context(main, info_name="llama4")
    subcommand = main.get_command(top, name)
    assert subcommand is not None
    subcommand.make_context(name, arguments, parent=top)
    unit = tmp_path / "llama4.service"
    # systemd looks for the program.
    unit.write_text(text.replace(shlex.split(command)[0], sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- Python


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))]
)
def test_the_python_of_a_page_runs(page: str, shelf: Path, request: pytest.FixtureRequest) -> None:
    code = "\n".join(block.text for block in blocks(page) if block.language == "python")
    if "convert(" not in code:
        request.getfixturevalue("full_shelf")
    if _SERVERS.search(code):
        code = _SERVERS.sub(request.getfixturevalue("server"), code)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, page, "exec", dont_inherit=True), {"__name__": "__main__"})


# --- tables


def table(page: str, heading: str) -> list[list[str]]:
    """The cells below a heading's row."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def planned(*arguments: str) -> dict[str, Any]:
    """What `llama4 plan scout …` says for a machine with 128 GB of main memory."""
    result = CliRunner().invoke(
        main, ["plan", "scout", *arguments, "--ram", "128G", "--json"], catch_exceptions=False
    )
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count else "none"


@pytest.mark.parametrize("row", table("README.md", "Scout, int4, 32k tokens"), ids=lambda r: r[0])
def test_what_fits_where_is_what_the_planner_says(row: list[str]) -> None:
    machine, memory, experts, speeds = row
    gpu = re.sub(r", cache .*| 12 GB", "", machine)
    plan = planned(*([] if gpu == "none" else ["--gpu", gpu]))
    *gpus, host = plan["devices"]
    assert plan["fits"]
    assert plan["kv_type"] == ("q8_0" if "q8_0" in machine else "f16")
    if gpus:
        assert gib(sum(device["used_bytes"] for device in gpus)) == memory
        assert gib(host["weights"].get("expert", 0)) == experts
    speed = "estimated_decode_tokens_per_second"
    bounds = (plan[speed], plan[f"{speed}_full"])
    assert speeds == ", ".join(f"{bound:.{bound < 10:d}f}" for bound in bounds)


@pytest.mark.parametrize(
    "row", table("docs/reference/recipes.md", "recipe"), ids=lambda row: row[0]
)
def test_recipes_weigh_what_the_page_says(row: list[str]) -> None:
    name = row[0].split("`")[1]
    plan = planned("--recipe", name, "--gpu", "4x h200")
    weights = sum(device["weights_bytes"] for device in plan["devices"])
    assert f"{weights / 1e9:.0f} GB" == row[3]


TYPE_ROWS = table("docs/reference/recipes.md", "type")


def test_the_types_of_the_page_are_those_that_are_quantized() -> None:
    named = {row[0].strip("`").upper(): row for row in TYPE_ROWS}
    quantized = [one for one in TYPES.values() if one.quantized]
    assert set(named) == {one.name for one in quantized}
    assert [float(row[1]) for row in TYPE_ROWS] == sorted(
        (one.bits_per_weight for one in quantized), reverse=True
    )
    for one in quantized:
        _, bits, _, encoder, plain, *_ = named[one.name]
        assert float(bits) == one.bits_per_weight
        assert encoder.startswith("ours" if one in NATIVE else "ggml's")
        assert plain[0].isdigit() != one.needs_importance


def _is_quick(row: list[str]) -> bool:
    """Not of the types that need an importance matrix, for which ggml makes tables for seconds."""
    return not TYPES[row[0].strip("`").upper()].needs_importance


QUICK_ROWS = [row for row in TYPE_ROWS if _is_quick(row)]


@pytest.mark.parametrize("row", QUICK_ROWS, ids=lambda row: row[0])
def test_types_lose_what_the_page_says(row: list[str]) -> None:
    tensor_type = TYPES[row[0].strip("`").upper()]
    numbers = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
    data = np.empty(tensor_type.nbytes(numbers.shape), np.uint8)
    encode_rows(numbers, tensor_type, data)
    decoded = np.empty_like(numbers)
    decode_blocks(data, tensor_type, decoded)
    error = np.sqrt(np.mean((decoded - numbers) ** 2) / np.mean(numbers**2))
    assert f"{error * 100:.1f}%" == row[2]


def test_the_cache_takes_what_the_page_says() -> None:
    gpu, _ = planned("--gpu", "h100")["devices"]
    full, chunked = table("docs/concepts/planning.md", "Scout, cache in f16")
    assert gib(gpu["kv_full_bytes"]) == full[4]
    assert gib(gpu["kv_chunked_bytes"]) == chunked[4]
    for cells in (full, chunked):
        assert int(cells[2].replace(",", "")) * 4096 == int(cells[3].split()[0]) * 2**20


def test_backends_are_those_that_doctor_knows() -> None:
    known = [[one.name, one.gpus, f"`{one.option}`"] for one in BACKENDS]
    known.append([METAL.name, METAL.gpus, "none: on by default"])
    assert METAL.option == ""
    assert table("docs/guides/first-run.md", "backend") == known


SCORES = {
    "facts": "knowledge",
    "a code": "lookup",
    "repeating": "copying",
    "a name": "name",
    "greetings": "greeting",
    "declining": "unknown",
    "sums": "arithmetic",
    "**all": "text",
}


def test_the_model_in_the_box_has_the_scores_of_its_examination() -> None:
    measured = {row[0]: row[1:3] for row in table("demo/Llama-4-Tiny/README.md", "questions")}
    claimed = table("docs/reference/demo-model.md", "questions")
    for beginning, kind in SCORES.items():
        (row,) = (row for row in claimed if row[0].startswith(beginning))
        scores = [f"{float(cell.rstrip('%')):.0f}%" for cell in measured[kind]]
        assert [cell.strip("*") for cell in row[1:3]] == scores


def test_experts_are_as_many_as_the_page_says() -> None:
    rows = {row[0]: row[1:] for row in table("docs/concepts/experts.md", "counts")}
    for column, preset in enumerate(("scout", "maverick")):
        drawing = blueprint(preset, recipe="bf16")
        hparams = drawing.config.hparams
        layers = range(hparams.n_layer)
        experts = sum(t.parameters for t in drawing.tensors if t.role == "expert")
        share = experts / sum(t.parameters for t in drawing.tensors)
        cells = {name: row[column] for name, row in rows.items()}
        assert cells["layers"] == str(hparams.n_layer)
        assert cells["layers with experts"] == str(sum(map(hparams.has_experts, layers)))
        assert cells["experts in such a layer"] == str(hparams.n_expert)
        assert cells["share of the parameters that is experts"] == f"{share:.1%}"

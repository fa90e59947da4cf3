"""No text of a file, the hub, a worker or a model hides anything in a view, or in its JSON."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge import convert, plan
from llama4_edge.commands.output import present, print_json
from llama4_edge.convert.converter import inspect_checkpoint
from llama4_edge.hub.pull import Pulled
from llama4_edge.inspection import Inspection
from llama4_edge.measure.speed import BenchCase, BenchResult, BenchTest
from llama4_edge.planner.check import Compared
from llama4_edge.planner.table import table
from llama4_edge.runtime.bindings.devices import Device
from llama4_edge.runtime.doctor import Finding, doctor
from llama4_edge.runtime.files.damage import Damage
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.workers.worker import Worker
from llama4_edge.terminal.bench_view import bench_view
from llama4_edge.terminal.inspection_view import inspection_view
from llama4_edge.terminal.plan_view import check_view, plan_view, table_view
from llama4_edge.terminal.tables import (
    diagnosis_view,
    pulled_view,
    report_view,
    worker_view,
)
from llama4_edge.terminal.visible import visible
from tests.fuzzing import efforts, fuzz

# Words of our own, which views look up or compute with.
OWN = {
    *("level", "kind", "recipe", "holder", "role", "type", "roles", "settings", "case", "load"),
    *("address", "process"),
}

_TEXTS = (
    *("\x9b31m", "\x1b]0;title\x07", "\u202egnp.exe", "a\u2066b", "x\nerror: no", "\r", "\0"),
    *("a\u2028b", "a\u200bb", "\ufeffa", "\x85", "\ud800", "\udcff", "\U000e0041", "\u3164"),
    *("[red]a[/red]", ":smile:", "[/]", "{x}", "%s", "\t", "  ", "é", "a\u200db", "漢字"),
    "m" * 9000,
)
hostile_texts = st.one_of(st.sampled_from(_TEXTS), st.text(min_size=1, max_size=12))


def replaced(value: Any, text: str) -> Any:
    """The value with every text in it that is not a word of our own replaced by `text`."""
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        # Those of metadata are a file's; others are names of ours.
        keys = {f"{text}{number}" if "." in key else key: key for number, key in enumerate(value)}
        return {new: replaced(value[old], text) for new, old in keys.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, text) for item in value)
    if not is_dataclass(value):
        return value
    changed = copy.copy(value)
    for field in fields(value):
        if field.name not in OWN:
            new = replaced(getattr(value, field.name), text)
            object.__setattr__(changed, field.name, new)
    return changed


@pytest.fixture(scope="module")
def views(scout_checkpoint: Path) -> list[tuple[Any, Callable[[Any], Any]]]:
    """A value of each kind that is shown, with its view."""
    planned = plan("scout", vram=[24 * 2**30], ram=64 * 2**30)
    device = Device("RPC0", "a worker", "GPU", "RPC", 2**34, 2**33, "the worker")
    damage = (Damage("x", "y", 3, "z"), Damage(None, "y", 0, "z", certain=False))
    inspection = Inspection(inspect_checkpoint(scout_checkpoint), damage)
    finding = Finding("problem", "what", "a command")
    diagnosis = doctor()
    object.__setattr__(diagnosis, "findings", (finding,))
    memory = planned.devices[0].memory
    rows = (Compared(memory, memory),)
    model = {"model_filename": "f", "model_type": "t", "model_size": 1, "model_n_params": 2}
    model["n_expert_used"] = 1
    names = ("build_commit", "build_number", "cpu_info", "gpu_info", "backends")
    case = BenchCase(BenchTest(8, 0, 0), EngineSettings(n_threads=1), 0)
    result = BenchResult(case, (5,), "now", model, dict.fromkeys(names, "x"))
    return [
        (planned, plan_view),
        ((planned, rows), lambda both: check_view(*both)),
        (table(["scout"], recipes=["int4"]), table_view),
        (inspection, lambda value: inspection_view(value, tensors=True)),
        (convert(scout_checkpoint, dry_run=True), report_view),
        (Pulled("org/name", "c" * 40, "m", ("m", "n"), "p", 5, 3), pulled_view),
        (diagnosis, diagnosis_view),
        (Worker("10.0.0.1", 50052, (device,), 1, None), worker_view),  # type: ignore[arg-type]
        ([result], bench_view),
    ]


@efforts
def test_no_text_hides_anything_in_a_view_or_in_json(
    effort: settings,
    views: list[tuple[Any, Callable[[Any], Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lines_of(value: Any, view: Callable[[Any], Any]) -> list[str]:
        present(value, view)
        return capsys.readouterr().out.split("\n")

    def check(drawn: tuple[int, str]) -> None:
        value, view = views[drawn[0]]
        hostile = replaced(value, drawn[1])
        lines = lines_of(hostile, view)
        # No line of its own, and none of endless length.
        assert len(lines) == len(lines_of(replaced(value, "a"), view))
        assert all(visible(line) == line for line in lines)
        assert max(map(len, lines)) < 6000
        if hasattr(hostile, "as_dict"):
            record = hostile.as_dict()
            print_json(record)
            text = capsys.readouterr().out
            assert visible(text.replace("\n", "")) == text.replace("\n", "")
            assert json.loads(text) == json.loads(json.dumps(record))

    fuzz(check, st.tuples(st.integers(0, len(views) - 1), hostile_texts), effort)


def test_what_is_hidden_is_what_unicode_calls_so() -> None:
    import sys
    import unicodedata

    # Signs of Arabic, Syriac, Kaithi and hieroglyphs that are drawn around what follows.
    drawn = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        hides = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")
        if hides and not drawn.match(character) and not 0x13430 <= code <= 0x1343F:
            assert visible(character) != character
    assert visible("naïve 漢字 Ġtoken ␛") == "naïve 漢字 Ġtoken ␛"

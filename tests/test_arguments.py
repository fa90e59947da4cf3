"""No argument of a public function is a traceback, whatever its type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama4_edge
from llama4_edge.errors import Llama4EdgeError
from tests.adapters import halves, write_peft

WRONG: tuple[Any, ...] = (
    *(None, True, 3, -1, 2**70, 10**5000, 1.5, float("nan"), "x", "", "a\0b", "\ud800", b"x"),
    *([], [None], [3], {}, {"x": 1}, (), (1, 2), object()),
)
"""What stands where something else belongs; some of it is right somewhere."""


def shown(value: object) -> str:
    return "10**5000" if value == WRONG[5] else ascii(value)[:20]


@dataclass(frozen=True)
class Call:
    """A public function, and arguments with which it does something quick."""

    function: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def parameters(self) -> list[str]:
        names = [
            name
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            # Anything is true or false.
            and not isinstance(parameter.default, bool)
        ]
        return [name for name in dict.fromkeys([*names, *self.arguments]) if name != "self"]


OPTIONS: dict[str, Any] = {
    "max_tokens": 1, "temperature": 0.0, "top_k": 1, "top_p": 0.5, "min_p": 0.1, "seed": 1,
    "stop": "x", "sampling": llama4_edge.Sampling(), "when_full": "stop",
    "tools": [], "tool_choice": "auto", "logprobs": False, "top_logprobs": 0,
    "response_format": None, "grammar": None, "regex": None, "adapters": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def calls(
    tiny_path: Path, scout_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Call]]:
    out = tmp_path_factory.mktemp("arguments") / "out"
    adapter = write_peft(
        out.with_name("adapter"), halves("model.layers.0.self_attn.q_proj", 64, 64)
    )
    talk = llama4_edge.Conversation()
    plan = llama4_edge.plan(tiny_path)

    def opened(path: Any, **settings: Any) -> None:
        llama4_edge.Model(path, **settings).close()

    def measured(*arguments: Any, **settings: Any) -> None:
        list(llama4_edge.bench(*arguments, **settings))

    opened.__signature__ = inspect.signature(llama4_edge.Model)  # type: ignore[attr-defined]
    measured.__signature__ = inspect.signature(llama4_edge.bench)  # type: ignore[attr-defined]
    part = llama4_edge.split(tiny_path, out.with_name("parts"), parts=2).output
    grid = llama4_edge.BenchGrid((4,), (), repetitions=1)
    with llama4_edge.Model(tiny_path, n_ctx=64) as model:
        yield {
            "bench": Call(measured, {"path": tiny_path, "grid": grid}),
            "calibrate": Call(
                llama4_edge.calibrate,
                {"model": tiny_path, "output": tiny_path, "text": "x", "n_chunks": 1},
            ),
            "read_conversations": Call(llama4_edge.read_conversations, {"path": out}),
            "compare": Call(llama4_edge.compare, {"reference": out, "text": "x"}),
            "Candidate": Call(llama4_edge.Candidate, {"path": out}),
            "Question": Call(
                llama4_edge.Question, {"text": "x", "choices": ("x", "y"), "answer": 0}
            ),
            "read_questions": Call(llama4_edge.read_questions, {"path": out}),
            "convert": Call(
                llama4_edge.convert,
                {"source": scout_checkpoint, "output": out, "dry_run": True},
            ),
            "diff": Call(llama4_edge.diff, {"a": tiny_path, "b": tiny_path}),
            "convert_lora": Call(
                llama4_edge.convert_lora,
                {"source": adapter, "output": out, "base": tiny_path, "dry_run": True},
            ),
            "doctor": Call(llama4_edge.doctor, {}),
            "fit": Call(llama4_edge.fit, {"source": scout_checkpoint, "target_bpw": 1e-3}),
            "image_tiles": Call(
                llama4_edge.image_tiles, {"picture": np.zeros((3, 3, 3), dtype=np.uint8)}
            ),
            "with_documents": Call(
                llama4_edge.with_documents, {"text": "x", "paths": scout_checkpoint / "README.md"}
            ),
            "with_images": Call(
                llama4_edge.with_images,
                {"text": "x", "pictures": np.zeros((3, 3, 3), dtype=np.uint8)},
            ),
            "inspect": Call(llama4_edge.inspect, {"path": tiny_path}),
            "make_recipe": Call(
                llama4_edge.make_recipe, {"name": "mine", "types": [], "default": "q8_0"}
            ),
            "read_recipe": Call(llama4_edge.read_recipe, {"path": out}),
            "write_recipe": Call(
                llama4_edge.write_recipe,
                {"recipe": llama4_edge.make_recipe("mine", [], "q8_0"), "path": out},
            ),
            "merge": Call(llama4_edge.merge, {"source": part, "output": out, "dry_run": True}),
            "plan": Call(llama4_edge.plan, {"model": tiny_path}),
            "pull": Call(llama4_edge.pull, {"repository": "org/name"}),
            "split": Call(
                llama4_edge.split,
                {"source": tiny_path, "output": out, "parts": 2, "dry_run": True},
            ),
            "BenchGrid": Call(llama4_edge.BenchGrid, {}),
            "BenchTest": Call(llama4_edge.BenchTest, {"n_prompt": 1, "n_gen": 1}),
            "Conversation": Call(llama4_edge.Conversation, {}),
            "Conversation.load": Call(llama4_edge.Conversation.load, {"path": out}),
            "Conversation.save": Call(talk.save, {"path": out}),
            "Conversation.user": Call(talk.user, {"content": "x"}),
            "Conversation.system": Call(talk.system, {"text": "x"}),
            "Conversation.assistant": Call(talk.assistant, {"answer": "x"}),
            "Conversation.tool": Call(talk.tool, {"call": "x", "result": "x"}),
            "ToolCall": Call(llama4_edge.ToolCall, {"id": "x", "name": "x"}),
            "run_tools": Call(
                llama4_edge.run_tools,
                {"model": model, "messages": "x", "tools": [], "max_rounds": 0, "max_tokens": 1},
            ),
            "Adapter": Call(llama4_edge.Adapter, {"path": tiny_path}),
            "ControlVector": Call(llama4_edge.ControlVector, {"path": tiny_path}),
            "EngineSettings": Call(llama4_edge.EngineSettings, {}),
            "Message": Call(llama4_edge.Message, {"role": "user", "content": "x"}),
            "Model": Call(opened, {"path": tiny_path, "n_ctx": 64}),
            "Placement": Call(llama4_edge.Placement, {}),
            "Plan.load": Call(llama4_edge.Plan.load, {"path": out}),
            "Plan.from_dict": Call(llama4_edge.Plan.from_dict, {"record": {}}),
            "Plan.save": Call(plan.save, {"path": out}),
            "Sampling": Call(llama4_edge.Sampling, {}),
            "Model.tokenize": Call(model.tokenize, {"text": "x"}),
            "Model.detokenize": Call(model.detokenize, {"tokens": [1]}),
            "Model.logits": Call(model.logits, {"tokens": [1]}),
            "Model.score": Call(model.score, {"prompt": "x", "top": 1}),
            "Model.image_features": Call(
                model.image_features, {"picture": np.zeros((3, 3, 3), dtype=np.uint8)}
            ),
            "Model.chat_prompt": Call(model.chat_prompt, {"messages": "x"}),
            "Model.generate": Call(model.generate, {"prompt": "x"} | OPTIONS),
            "Model.chat": Call(model.chat, {"messages": "x"} | OPTIONS),
            "Model.save_session": Call(model.save_session, {"path": out, "messages": "x"}),
            "Model.load_session": Call(model.load_session, {"path": out}),
        }


# Beside these there are values that the library returns, and errors.
NAMES = (
    "bench", "calibrate", "read_conversations", "compare", "Candidate", "Question",
    "read_questions", "convert", "convert_lora", "diff", "doctor", "image_tiles",
    "with_documents", "with_images", "inspect",
    "merge", "plan", "pull", "split", "BenchGrid",
    "BenchTest", "Conversation", "Conversation.load", "Conversation.save", "Conversation.user",
    "Conversation.system", "Conversation.assistant", "Conversation.tool",
    "ToolCall", "run_tools", "Adapter", "ControlVector", "EngineSettings", "Message", "Model",
    "Placement", "Plan.load", "Plan.from_dict", "Plan.save", "Sampling", "Model.tokenize",
    "Model.detokenize", "Model.image_features", "Model.logits", "Model.score", "Model.chat_prompt",
    "Model.generate", "Model.chat",
    "Model.save_session", "Model.load_session",
)  # fmt: skip


def fault_of(call: Callable[[], object]) -> str | None:
    """What it raises that is no error of ours."""
    try:
        call()
    except Llama4EdgeError as error:
        return None if len(str(error)) < 2000 else "a page of text"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_of_another_type_is_one_error(
    name: str, calls: dict[str, Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # "x" is a name of a file too
    call = calls[name]
    raised = []
    for parameter, value in product(call.parameters, WRONG):
        fault = fault_of(partial(call.function, **call.arguments | {parameter: value}))
        if fault is not None:
            raised.append(f"{parameter}={shown(value)}: {fault}")
    assert not raised, "\n".join(raised)

"""Adapters over HTTP, as llama.cpp's server has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama4_edge import Model
from llama4_edge.server.keeper import ModelKeeper
from tests.adapters import tiny_adapter
from tests.gguf_maker import STR, Value, tiny_model
from tests.server.running import running_server
from tests.tiny_model import never_ending

TARGETS = [
    name
    for name, tensor in tiny_model().tensors.items()
    if tensor.ndim == 2 and name != "token_embd.weight"
]
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
    "temperature": 0,
}
TEXT: dict[str, Any] = {"prompt": "Hello", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    never_ending().write(directory / "model.gguf")
    poems = tiny_adapter(TARGETS)
    poems.keys["adapter.lora.task_name"] = Value("poetry", STR)
    poems.write(directory / "poems.gguf")
    tiny_adapter(TARGETS, seed=7).write(directory / "law.gguf")
    return directory


def opened(files: Path) -> Model:
    adapters: list[Any] = [files / "poems.gguf", (files / "law.gguf", 0.0)]
    return Model(files / "model.gguf", n_ctx=256, n_threads=1, n_parallel=2, adapters=adapters)


@pytest.fixture(scope="module")
def model(files: Path) -> Iterator[Model]:
    with opened(files) as loaded:
        yield loaded


@pytest.fixture
def client(model: Model) -> Iterator[httpx.Client]:
    with running_server(model) as server, server.client() as client:
        yield client


def said(client: httpx.Client, **fields: object) -> str:
    answer = client.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_requests_have_their_own_scales(client: httpx.Client, model: Model) -> None:
    # Scales after which no two tokens are so near to each other that rounding could decide.
    for lora, adapters in (
        ([{"id": 0, "scale": 0.6}], [("poems", 0.6)]),
        ([{"id": 1, "scale": 2.0}], [("law", 2.0)]),
        ([{"id": 0, "scale": 0.0}], []),
        ([], None),
        (None, None),
    ):
        expected = model.chat("Hello", max_tokens=8, temperature=0.0, adapters=adapters).text
        assert said(client, lora=lora) == expected
        expected = model.generate("Hello", max_tokens=8, temperature=0.0, adapters=adapters).text
        answer = client.post("/v1/completions", json=TEXT | {"lora": lora}).json()
        assert answer["choices"][0]["text"] == expected


def test_every_protocol_has_them(client: httpx.Client, model: Model) -> None:
    asked = {"lora": [{"id": 1, "scale": 2.0}], "temperature": 0.0}
    expected = model.chat("Hello", max_tokens=8, temperature=0.0, adapters=[("law", 2.0)]).text
    assert expected != model.chat("Hello", max_tokens=8, temperature=0.0).text
    answer = client.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 8, **asked})
    assert answer.json()["output"][0]["content"][0]["text"] == expected
    answer = client.post("/v1/messages", json={"model": "m", "max_tokens": 8, **CHAT, **asked})
    assert answer.json()["content"][0]["text"] == expected
    wrong = {"lora": [{"id": 7, "scale": 1.0}]}
    answer = client.post("/v1/responses", json={"input": "Hello", **wrong})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora")
    answer = client.post("/v1/messages", json={"model": "m", "max_tokens": 8, **CHAT, **wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("lora: ")


def test_echoed_prompts_are_scored_with_them(client: httpx.Client, model: Model) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
    for lora, adapters in (([{"id": 1, "scale": 2.0}], [("law", 2.0)]), (None, None)):
        answer = client.post("/v1/completions", json=TEXT | fields | {"lora": lora}).json()
        (last,) = answer["choices"][0]["logprobs"]["token_logprobs"][-1:]
        expected = model.score("Hello", adapters=adapters)[-1].logprob
        assert last == pytest.approx(expected, abs=0.01)


def test_they_are_listed_and_their_scales_changed(client: httpx.Client, files: Path) -> None:
    listed = client.get("/lora-adapters").json()
    assert listed == [
        {
            "id": 0,
            "path": str(files / "poems.gguf"),
            "scale": 1.0,
            "task_name": "poetry",
            "prompt_prefix": "",
        },
        {
            "id": 1,
            "path": str(files / "law.gguf"),
            "scale": 0.0,
            "task_name": "",
            "prompt_prefix": "",
        },
    ]
    expected = said(client, lora=[{"id": 1, "scale": 2.0}])
    changed = client.post("/lora-adapters", json=[{"id": 1, "scale": 2.0}])
    assert (changed.status_code, changed.json()) == (200, {"success": True})
    assert [one["scale"] for one in client.get("/lora-adapters").json()] == [0.0, 2.0]
    assert said(client) == expected
    client.post("/lora-adapters", json=[{"id": 0, "scale": 1.0}])
    assert client.get("/lora-adapters").json() == listed


@pytest.mark.parametrize(
    ("lora", "param"),
    [
        ([{"id": 2, "scale": 1.0}], "lora"),
        ([{"id": 0, "scale": 1.0}, {"id": 0, "scale": 1.0}], "lora"),
        ([{"id": 0, "scale": 1e9}], None),
        ([{"id": -1, "scale": 1.0}], "lora[0].id"),
        ([{"id": 0}], "lora[0].scale"),
        ([{"id": 0, "scale": "1"}], "lora[0].scale"),
        ("x", "lora"),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, lora: object, param: str | None) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT | {"lora": lora})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    answer = client.post("/lora-adapters", json=lora)
    assert answer.status_code == 400
    if isinstance(lora, list):
        assert answer.json()["error"]["param"] == param


def test_changed_scales_outlast_a_model_that_is_freed(files: Path) -> None:
    keeper = ModelKeeper(lambda _: opened(files), idle_seconds=0.05)
    with running_server(keeper) as server, server.client() as client:
        while client.get("/health").status_code != 200:
            pass
        client.post("/lora-adapters", json=[{"id": 1, "scale": 2.0}])
        while keeper.loaded is not None:
            pass
        assert [one["scale"] for one in client.get("/lora-adapters").json()] == [0.0, 2.0]

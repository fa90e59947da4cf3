"""What llama.cpp's server has beside the protocols of others."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llama4_edge import Model
from llama4_edge.vision.seen import SEEN
from tests.asking import until
from tests.server.running import RunningServer, running_server

TEXT = "Łódź <|eot|> 🦙"


def samples(client: httpx.Client) -> dict[str, float]:
    """The metrics without labels, by name."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {
        sample.name.removeprefix("llama4:"): sample.value
        for family in families
        for sample in family.samples
        if not sample.labels
    }


def test_a_text_becomes_tokens_and_back(demo: httpx.Client, demo_model: Model) -> None:
    for special in (True, False):
        body = {"content": TEXT, "parse_special": special}
        tokens = demo.post("/tokenize", json=body).json()["tokens"]
        assert tokens == demo_model.tokenize(TEXT, special=special)
        assert demo.post("/detokenize", json={"tokens": tokens}).json() == {
            "content": TEXT,
            "prompt": TEXT,
        }
    tokens = demo.post("/tokenize", json={"content": "a", "add_special": True}).json()["tokens"]
    assert tokens == demo_model.tokenize("a", add_bos=True)


def test_vllms_words_give_the_same_tokens(demo: httpx.Client, demo_model: Model) -> None:
    for added in (False, True):
        body = {"prompt": TEXT, "add_special_tokens": added}
        tokens = demo.post("/tokenize", json=body).json()["tokens"]
        assert tokens == demo_model.tokenize(TEXT, special=True, add_bos=added)
    for wrong in ({}, {"prompt": "a", "content": "a"}):
        answer = demo.post("/tokenize", json=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content")
    facts = demo.get("/tokenizer_info").json()
    for name in ("bos_token", "eos_token"):
        (token,) = demo_model.tokenize(facts[name], special=True)
        assert demo_model.engine.is_end(token) == (name == "eos_token")


def test_pieces_are_texts_or_bytes(demo: httpx.Client) -> None:
    body = {"content": TEXT, "with_pieces": True}
    tokens = demo.post("/tokenize", json=body).json()["tokens"]
    pieces = [one["piece"] for one in tokens]
    data = b"".join(bytes(one) if isinstance(one, list) else one.encode() for one in pieces)
    assert data.decode() == TEXT
    assert "<|eot|>" in pieces
    assert any(isinstance(one, list) for one in pieces)


def test_tokens_that_are_none_are_refused(demo: httpx.Client, demo_model: Model) -> None:
    body = {"tokens": [demo_model.engine.n_vocab]}
    answer = demo.post("/detokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    answer = demo.post("/detokenize", json={"tokens": [-1]})
    assert answer.json()["error"]["param"] == "tokens[0]"


def test_a_prompt_is_what_the_model_reads(demo: httpx.Client, demo_model: Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    prompt = demo.post("/apply-template", json={"messages": messages}).json()["prompt"]
    expected = demo_model.chat_prompt(messages).token_ids
    assert demo_model.detokenize(expected, special=True) == prompt
    assert prompt.endswith("<|header_start|>assistant<|header_end|>\n\n")


def test_properties_are_those_of_the_model(demo: httpx.Client, demo_model: Model) -> None:
    properties = demo.get("/props").json()
    assert properties["total_slots"] == 4
    assert properties["default_generation_settings"]["n_ctx"] == 4096
    assert properties["default_generation_settings"]["params"]["temperature"] == 0.6
    assert properties["model_path"] == str(demo_model.info.path)
    assert properties["chat_template"] == demo_model.info.chat_template
    assert properties["modalities"] == {"vision": True, "audio": False, "video": False}
    assert (properties["bos_token"], properties["is_sleeping"]) == ("<|begin_of_text|>", False)


def test_slots_are_sequences(demo: httpx.Client) -> None:
    def slots_now() -> list[dict[str, Any]]:
        slots: list[dict[str, Any]] = demo.get("/slots").json()
        return slots

    # What a test before this one left is given up meanwhile.
    until(lambda: not any(slot["is_processing"] for slot in slots_now()))
    slots = slots_now()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert {slot["n_ctx"] for slot in slots} == {4096}


def test_metrics_count_what_was_answered(demo_model: Model) -> None:
    # A server of its own: another's may still end what a test before this one gave up.
    with running_server(demo_model) as server, server.client() as demo:
        check_metrics(demo)


def check_metrics(demo: httpx.Client) -> None:
    before = samples(demo)
    body = {
        "messages": [{"role": "user", "content": "Metrics?"}], "max_tokens": 5, "temperature": 0,
    }  # fmt: skip
    usages = [demo.post("/v1/chat/completions", json=body).json()["usage"] for _ in range(2)]
    after = samples(demo)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    changes = {
        "prompt_tokens_total": sum(usage["prompt_tokens"] for usage in usages) - cached,
        "prompt_tokens_cached_total": cached,
        "tokens_predicted_total": sum(usage["completion_tokens"] for usage in usages),
        "request_seconds_count": 2,
        "first_token_seconds_count": 0,
    }
    assert {name: after[name] - before[name] for name in changes} == changes
    assert cached > 0
    assert after["prompt_seconds_total"] > before["prompt_seconds_total"]
    assert after["kv_cache_tokens"] > 0
    assert 0 < after["kv_cache_usage_ratio"] <= 1
    assert (after["slots"], after["model_loaded"]) == (4, 1)
    demo.post("/v1/messages", json={**body, "model": "m", "stream": True})
    assert samples(demo)["first_token_seconds_count"] == after["first_token_seconds_count"] + 1
    assert after["process_resident_memory_bytes"] > 1e7


def test_metrics_say_what_caches_keep(demo_model: Model) -> None:
    with running_server(demo_model) as server, server.client() as demo:
        SEEN.tiles(np.full((20, 30, 3), 117, np.uint8))
        found = samples(demo)
        assert found["picture_tiles_bytes"] == SEEN.nbytes >= 336 * 336 * 3
        assert found["states_bytes"] == demo_model.engine.cache.nbytes


def test_paths_that_are_not_there_are_one_series(demo: httpx.Client) -> None:
    for number in range(5):
        assert demo.get(f"/nothing/{number}").status_code == 404
        assert demo.get(f"/v1/responses/resp_{number}").status_code == 404
    text = demo.get("/metrics").text
    assert 'llama4:requests_total{path="other",status="404"}' in text
    assert "nothing" not in text
    assert "resp_" not in text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/embedding"])
def test_embeddings_are_refused_with_a_reason(tiny: httpx.Client, path: str) -> None:
    answer = tiny.post(path, json={"model": "x", "input": "y"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_supported")


def test_models_are_listed_for_both_clients(demo_server: RunningServer) -> None:
    import anthropic
    import openai

    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="x") as client:
        (model,) = client.models.list()
    with anthropic.Anthropic(base_url=demo_server.url, api_key="x") as other:
        (same,) = other.models.list()
        assert other.models.retrieve(same.id).id == model.id
    assert same.id == model.id
    assert same.created_at.timestamp() == model.created

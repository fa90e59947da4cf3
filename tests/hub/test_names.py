"""What people paste: an address, a name of another program, a repository with something added."""

from __future__ import annotations

import pytest

from llama4_edge.hub.names import HubName, other_name, parse_hub_name

MODEL = HubName("org/name")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", MODEL),
        ("org/name/", MODEL),
        ("  org/name\n", MODEL),
        ("'org/name'", MODEL),
        ("<https://huggingface.co/org/name>", MODEL),
        ("hf://org/name", MODEL),
        ("hf:/org/name", MODEL),
        ("hf:org/name", MODEL),
        ("http://www.huggingface.co/org/name/?library=transformers#files", MODEL),
        ("https:/huggingface.co/org/name", MODEL),
        ("huggingface.co/org/name", MODEL),
        ("https://huggingface.co/org/name.git", MODEL),
        ("git@hf.co:org/name.git", MODEL),
        ("ssh://git@hf.co/org/name", MODEL),
        ("https://huggingface.co/api/models/org/name", MODEL),
        ("https://huggingface.co/org/name/discussions/5", MODEL),
        ("https://hf-mirror.example/org/name", MODEL),
        ("org/name@v1", HubName("org/name", "v1")),
        ("hf://org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("org/name@v1:Q4_K_M", HubName("org/name", "v1", None, "Q4_K_M")),
        ("https://huggingface.co/org/name/tree/main", HubName("org/name", "main")),
        ("https://huggingface.co/org/name/tree/main/", HubName("org/name", "main")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F3", HubName("org/name", "refs/pr/3")),
        ("https://huggingface.co/org/name/commit/abc", HubName("org/name", "abc")),
        ("https://huggingface.co/org/name/tree/v2/q4", HubName("org/name", "v2", "q4")),
        ("https://hf.co/org/name/blob/main/a/x.gguf", HubName("org/name", "main", "a/x.gguf")),
        ("https://hf.co/org/name/resolve/main/a%20b.gguf?download=true",
         HubName("org/name", "main", "a b.gguf")),
        ("hf.co/org/name:Q4_K_M", HubName("org/name", quantization="Q4_K_M")),
        ("org/name:UD-Q4_K_XL", HubName("org/name", quantization="UD-Q4_K_XL")),
        ("hf://org/name/x.gguf", HubName("org/name", file="x.gguf")),
        ("org/name/q4/x.gguf", HubName("org/name", file="q4/x.gguf")),
        ("scout", None), ("", None), ("/", None), ("a/b/c", None), ("./org/name", None),
        ("../org/name", None), ("/org/name", None), ("~/org", None), ("C:/x.gguf", None),
        ("C:\\x", None), ("org/na me", None), ("org/\0", None), ("org/é", None), ("²/a", None),
        ("org/..", None), ("org/name@", None), ("org/name:", None), ("https://[", None),
        ("https://example.org/org/name", None), ("s3://org/name", None), ("git@x:a/b", None),
        ("datasets/org/name", None), ("hf://spaces/org/name", None), ("x" * 100_000, None),
    ],
)  # fmt: skip
def test_what_a_text_means(
    text: str, name: HubName | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.example/")
    assert parse_hub_name(text) == name
    assert name is None or other_name(text) is None


SCOUT = "llama4 pull unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M"
MAVERICK = "llama4 pull unsloth/Llama-4-Maverick-17B-128E-Instruct-GGUF Q4_K_M"


@pytest.mark.parametrize(
    ("text", "kind", "hint"),
    [
        ("https://huggingface.co/datasets/org/name", "a data set", "org/name"),
        ("datasets/org/name", "a data set", "org/name"),
        ("hf://spaces/org/name", "a space", "org/name"),
        ("https://huggingface.co/spaces/org/name", "a space", "org/name"),
        ("https://huggingface.co/collections/org/name-1", "a collection", "org/name"),
        ("https://huggingface.co/papers/2501.1", "a paper", "org/name"),
        ("https://huggingface.co/models?search=llama", "a search", "org/name"),
        ("https://huggingface.co/org", "not a repository's", "org/name"),
        ("https://huggingface.co/", "not a repository's", "org/name"),
        ("llama4", "Ollama", SCOUT),
        ("llama4:scout", "Ollama", SCOUT),
        ("llama4:16x17b", "Ollama", SCOUT),
        ("llama4:latest", "Ollama", SCOUT),
        ("scout:latest", "Ollama", SCOUT),
        ("llama4:maverick", "Ollama", MAVERICK),
        ("llama4:128x17b-maverick-instruct-q4_K_M", "Ollama", MAVERICK),
        ("ollama://llama4", "Ollama", SCOUT),
        ("https://ollama.com/library/llama4:scout", "Ollama", SCOUT),
        ("registry.ollama.ai/library/llama4:scout", "Ollama", SCOUT),
    ],
)
def test_what_is_known_and_no_model_of_the_hub(text: str, kind: str, hint: str) -> None:
    assert parse_hub_name(text) is None
    other = other_name(text)
    assert other is not None
    assert kind in other[0] and other[1].rstrip(".").endswith(hint)


@pytest.mark.parametrize("text", ["scout", "maverick", "llama.gguf", "models", "x:y", "C:x", "a/b"])
def test_what_may_be_a_file_is_nothing_else(text: str) -> None:
    assert other_name(text) is None

"""Errors as OpenAI's client raises them, and what it does about a server that is busy."""

from __future__ import annotations

from contextlib import ExitStack

import openai as library
import pytest
from openai import OpenAI

from llama4_edge import Model
from llama4_edge.server.settings import ServerSettings
from llama4_edge.server.state import Served
from tests.server.clients.openai_clients import openai_client
from tests.server.running import running_server

HELLO = [{"role": "user", "content": "Hello!"}]


def ask(client: OpenAI, **fields: object) -> library.types.chat.ChatCompletion:
    given = {"model": "any", "messages": HELLO, "max_tokens": 4, **fields}
    answer = client.chat.completions.create(**given)  # type: ignore[call-overload]
    assert isinstance(answer, library.types.chat.ChatCompletion)
    return answer


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("top_p", 2),
        ("n", 0),
        ("max_tokens", "many"),
        ("messages", []),
        ("logit_bias", {"x": 1}),
        ("top_logprobs", 3),
        ("response_format", {"type": "prose"}),
    ],
)
def test_a_field_that_is_wrong_is_named(openai_tiny: OpenAI, field: str, value: object) -> None:
    with pytest.raises(library.BadRequestError) as caught:
        ask(openai_tiny, **{field: value})
    assert caught.value.param is not None and caught.value.param.split(".")[0] == field
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_that_does_not_fit_has_openais_code(openai_tiny: OpenAI) -> None:
    with pytest.raises(library.BadRequestError) as caught:
        ask(openai_tiny, messages=[{"role": "user", "content": "word " * 300}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_what_is_not_there_is_not_found(openai_tiny: OpenAI) -> None:
    with pytest.raises(library.NotFoundError) as caught:
        openai_tiny.models.retrieve("another")
    assert caught.value.code == "model_not_found"
    with pytest.raises(library.NotFoundError):
        openai_tiny.files.list()


def test_keys_that_are_wrong_are_told_apart(tiny_model: Model) -> None:
    settings = ServerSettings(api_keys=("right",))
    with running_server(tiny_model, settings) as server:
        with (
            openai_client(server, api_key="wrong") as client,
            pytest.raises(library.AuthenticationError),
        ):
            ask(client)
        with openai_client(server, api_key="right") as client:
            assert ask(client).choices


def test_a_server_that_is_busy_is_asked_again_after_the_time_it_says(tiny_model: Model) -> None:
    n_parallel = tiny_model.engine.settings.n_parallel
    with running_server(tiny_model, ServerSettings(max_queue=0)) as server:
        statuses: list[int] = []
        with ExitStack() as others:

            def note(record: Served) -> None:
                statuses.append(record.status)
                if len(statuses) == 2:
                    others.close()

            server.server.observers.append(note)
            # As if they were being answered.
            others.enter_context(server.server.queue.admitted(n_parallel, n_parallel))
            with (
                openai_client(server) as impatient,
                pytest.raises(library.RateLimitError) as caught,
            ):
                ask(impatient)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            with openai_client(server, max_retries=3) as patient:
                assert ask(patient).choices
        assert statuses == [429, 429, 200]

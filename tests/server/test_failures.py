"""What fails in the middle is told in the protocol's form, and ends nothing else."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import ssl
import subprocess
from pathlib import Path
from shutil import which

import httpx
import pytest

from llama4_edge import Model
from llama4_edge.chat import making, structure
from llama4_edge.errors import ModelFileError, SettingError
from llama4_edge.server import chat
from llama4_edge.server.app import create_app
from llama4_edge.server.endpoint import Endpoint
from llama4_edge.server.keeper import ModelKeeper
from llama4_edge.server.running import TLS, LoopFailures, Running
from llama4_edge.server.schema.openai import ChatRequest
from llama4_edge.server.settings import ServerSettings
from tests.server.holding import HeldEngine
from tests.server.running import RunningServer, running_server
from tests.tiny_model import never_ending

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(tmp_path: Path) -> None:
    path = never_ending().write(tmp_path / "endless.gguf")
    with (
        Model(path, n_ctx=4096, n_threads=1) as model,
        running_server(model) as server,
        server.client() as client,
    ):
        # Held, so that the answer does not come to its end before.
        with (
            HeldEngine(model) as engine,
            client.stream("POST", CHAT, json={**HI, "stream": True}) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            engine.step_until(lambda: model.engine.sequences[0][0] > 30)
            model.close()
            rest = [line for line in lines if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["type"] == "server_error"
        assert "closed" in error["message"]
        refused = client.post(CHAT, json=HI)
        assert refused.status_code == 503


GROWING = {
    **HI, "regex": "[ab]*a[ab]{60}c", "temperature": 1.9, "top_k": 0, "top_p": 1, "seed": 1,
}  # fmt: skip


def test_a_form_that_grows_beyond_measure_while_answering_is_told_by_its_field(
    tiny: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(structure, "_MOST_STATES", 100)
    answer = tiny.post(CHAT, json=GROWING)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "regex")
    assert "cannot be held to regex any further" in error["message"]
    streamed = tiny.post(CHAT, json={**GROWING, "stream": True})
    assert streamed.status_code == 200  # it had begun
    events = [line for line in streamed.text.splitlines() if line]
    assert json.loads(events[-1].removeprefix("data: ")) == {"error": error}
    assert not [one for one in caplog.records if one.name.startswith("llama4_edge")]


def test_a_form_for_which_there_is_no_room_is_asked_for_again_later(
    tiny: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "MOST_WAITING", 0)
    for fields in ({"regex": "a+"}, {"regex": "a+", "stream": True}):
        answer = tiny.post(CHAT, json={**HI, **fields})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["code"] == "busy"


def test_an_answer_that_fails_has_no_traceback(
    tiny_server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(call: object) -> None:
        raise ZeroDivisionError("secret of the inside")

    (route,) = chat.routes
    endpoint = route.endpoint
    assert isinstance(endpoint, Endpoint)
    monkeypatch.setattr(endpoint, "_handle", broken)
    with caplog.at_level(logging.ERROR), tiny_server.client() as client:
        answer = client.post(CHAT, json=HI)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "Traceback" not in caplog.text
    assert endpoint.schema is ChatRequest


def test_a_model_that_cannot_be_loaded_again_is_told_and_tried_again(tiny_path: Path) -> None:
    failures: list[Exception] = []

    def load(_: object) -> Model:
        if failures:
            raise failures.pop()
        return Model(tiny_path, n_ctx=256, n_threads=1)

    keeper = ModelKeeper(load, idle_seconds=0.05)
    with running_server(keeper) as server, server.client() as client:
        while client.get("/health").status_code == 503:
            pass
        assert client.post(CHAT, json={**HI, "max_tokens": 1}).status_code == 200
        while client.get("/health").json()["model"] != "unloaded":
            pass
        failures.append(ModelFileError("the file is gone"))
        answer = client.post(CHAT, json={**HI, "max_tokens": 1})
        assert answer.status_code == 503
        assert "the file is gone" in answer.json()["error"]["message"]
        assert client.post(CHAT, json={**HI, "max_tokens": 1}).status_code == 200


def test_a_silent_stream_says_that_it_is_there(tiny_model: Model) -> None:
    body = {"prompt": "Hi", "max_tokens": 1, "stream": True}
    with (
        running_server(tiny_model, ServerSettings(beat_seconds=0.001)) as server,
        server.client() as client,
        HeldEngine(tiny_model) as engine,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        # There is nothing else to tell before the engine has read the prompt.
        assert next(lines) == ": "
        engine.let_go()
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    if which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    files = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return TLS(*map(str, files))


def test_tls_is_served_with_the_files_that_were_given(tiny_model: Model, certificate: TLS) -> None:
    with running_server(tiny_model, tls=certificate) as server:
        context = ssl.create_default_context(cafile=certificate.certificate)
        with httpx.Client(
            base_url=server.url.replace("http:", "https:"),
            verify=context,
            trust_env=False,
            timeout=600,
        ) as client:
            assert client.post(CHAT, json={**HI, "max_tokens": 1}).status_code == 200
        with server.client() as plain, pytest.raises(httpx.HTTPError):
            plain.get("/health")


def test_a_certificate_that_does_not_fit_its_key_is_refused(certificate: TLS) -> None:
    app = create_app(ModelKeeper(lambda _: pytest.fail("not loaded")))
    with pytest.raises(SettingError, match="the certificate and its key cannot be used"):
        Running(app, TLS(certificate.certificate, certificate.certificate))


def test_what_fails_in_the_loop_is_told_once_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(LoopFailures())
    full = OSError(errno.EMFILE, "Too many open files")
    for _ in range(1000):
        loop.call_exception_handler({"message": "accept() failed", "exception": full})
    loop.call_exception_handler({"message": "another"})
    loop.close()
    errors = [record for record in caplog.records if record.name == LoopFailures.__module__]
    told = [record.getMessage() for record in errors if record.levelname == "ERROR"]
    assert told == ["accept() failed: [Errno 24] Too many open files", "another"]
    assert not any(record.exc_info for record in errors if record.levelname == "ERROR")

"""`llama4 serve` as a process: where it listens, whom it lets in, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.asking import until
from tests.command_line import Command, the_error
from tests.pseudo_terminal import PATIENCE
from tests.tiny_model import never_ending

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 4}
ENDLESS = {**HI, "max_tokens": -1, "stream": True}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")


@dataclass
class Serving:
    """A server that runs as a process, and what it has said as JSON so far."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def until(self, event: str) -> dict[str, Any]:
        """The next event of that name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"no {event} but {self.events}")

    def client(self, url: str, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=url, timeout=60, trust_env=False, **settings)

    def client_at(self, path: Path) -> httpx.Client:
        """A client of a Unix socket, where the server waits that is a few hundred lines ahead."""
        return self.client("http://any.name", transport=httpx.HTTPTransport(uds=str(path)))

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@contextmanager
def serving(model: Path, *arguments: object, **environment: str) -> Iterator[Serving]:
    command = [sys.executable, "-m", "llama4_edge", "serve", str(model), "--json", "-t", "1"]
    process = subprocess.Popen(
        [*command, "-c", "512", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield Serving(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_says_where_it_listens_and_ends_with_code_0(endless: Path) -> None:
    with serving(endless, "--port", 0, "--alias", "mine", "-np", 2) as server:
        url = server.until("listening")["url"]
        ready = server.until("ready")
        assert (ready["n_ctx"], ready["n_parallel"]) == (512, 2)
        with server.client(url) as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
            assert client.post(CHAT, json=HI).json()["usage"]["completion_tokens"] == 4
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == (0, "")


def test_requests_are_told_with_their_tokens_and_rates(endless: Path) -> None:
    with serving(endless, "--port", 0) as server:
        url = server.until("listening")["url"]
        server.until("ready")
        with server.client(url) as client:
            client.post(CHAT, json=HI)
        told = server.until("request")
    assert (told["path"], told["status"], told["completion_tokens"]) == (CHAT, 200, 4)
    assert told["prompt_tokens"] > 4
    assert told["completion_rate"] > 0
    assert "Hi" not in json.dumps(told)


def test_while_the_model_is_loaded_503_says_so(endless: Path, tmp_path: Path) -> None:
    # A pipe in place of the model's directory entry would be refused: the first answer is enough.
    with serving(endless, "--port", 0) as server:
        url = server.until("listening")["url"]
        with server.client(url) as client:
            answers = [client.get("/health")]
            while answers[-1].status_code == 503:
                assert answers[-1].json()["error"]["code"] == "loading"
                assert answers[-1].headers["retry-after"]
                answers.append(client.get("/health"))
        assert answers[-1].json()["status"] == "ok"


def test_answers_go_on_after_sigterm_and_no_new_ones_begin(endless: Path) -> None:
    with serving(endless, "--port", 0) as server:
        url = server.until("listening")["url"]
        server.until("ready")
        with server.client(url) as client, client.stream("POST", CHAT, json=ENDLESS) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            server.until("stopping")
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.ended() == (0, "")


def test_what_does_not_end_in_the_grace_period_is_told_so(endless: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(endless, "--socket", path, "-c", "16k", "--grace", 0) as server:
        server.until("ready")
        with server.client_at(path) as client, client.stream("POST", CHAT, json=ENDLESS) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "stopping"
        assert server.ended()[0] == 0


def test_the_second_ctrl_c_ends_it_at_once(endless: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(endless, "--socket", path, "-c", "16k", "--grace", 600) as server:
        server.until("ready")
        with server.client_at(path) as client, client.stream("POST", CHAT, json=ENDLESS) as answer:
            lines = answer.iter_lines()  # which end the connection when they are forgotten
            next(lines)
            server.process.send_signal(signal.SIGINT)
            server.until("stopping")
            server.process.send_signal(signal.SIGINT)
            assert server.ended()[0] == 130


def test_a_unix_socket_is_its_owners_alone_and_gone_at_the_end(
    endless: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as stale:  # left by a server that was killed
        stale.bind(str(path))
    with serving(endless, "--socket", path) as server:
        server.until("ready")
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        with server.client_at(path) as client:
            assert client.post(CHAT, json=HI).status_code == 200
        second = subprocess.run(
            [sys.executable, "-m", "llama4_edge", "serve", str(endless), "--socket", str(path)],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert (second.returncode, "another server listens on" in second.stderr) == (1, True)
        server.process.send_signal(signal.SIGTERM)
        assert server.ended()[0] == 0
    assert not path.exists()


def test_something_else_in_the_way_of_a_socket_stays(
    llama4: Command, endless: Path, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    assert "in the way" in the_error(llama4("serve", endless, "--socket", path))
    assert path.read_text() == "mine"


def test_keys_come_from_the_file_and_the_environment(endless: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("from-file\n\n")
    with serving(
        endless, "--port", 0, "--api-key-file", keys, LLAMA_API_KEY="from-environment"
    ) as server:
        url = server.until("listening")["url"]
        server.until("ready")
        with server.client(url) as client:
            for key, status in (("from-file", 200), ("from-environment", 200), ("x", 401)):
                answer = client.post(CHAT, json=HI, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == status
        server.process.send_signal(signal.SIGTERM)
        server.until("stopped")
        assert server.ended()[0] == 0
    assert "from-" not in json.dumps(server.events)


def test_what_was_read_is_there_after_a_restart(endless: Path, tmp_path: Path) -> None:
    text = {"messages": [{"role": "user", "content": "the end " * 20}], "max_tokens": 2}
    cached = []
    for _ in range(2):
        with serving(endless, "--port", 0, "--slot-save", tmp_path / "slots") as server:
            url = server.until("listening")["url"]
            server.until("ready")
            with server.client(url) as client:
                usage = client.post(CHAT, json=text).json()["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            server.process.send_signal(signal.SIGTERM)
            assert server.ended()[0] == 0
    assert cached == [0, usage["prompt_tokens"] - 1]
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in (tmp_path / "slots").iterdir())


def test_a_damaged_state_is_told_and_read_anew(endless: Path, tmp_path: Path) -> None:
    (tmp_path / "slot-0000.l4s").write_bytes(b"not a session")
    with serving(endless, "--port", 0, "--slot-save", tmp_path) as server:
        server.until("ready")
    (warning,) = [event for event in server.events if event["event"] == "log"]
    assert warning["level"] == "warning"
    assert "slot-0000.l4s" in warning["message"]


def test_an_idle_model_is_freed_and_loaded_again(endless: Path, tmp_path: Path) -> None:
    with serving(endless, "--port", 0, "--idle-unload", 1) as server:
        url = server.until("listening")["url"]
        server.until("ready")
        with server.client(url) as client:
            first = client.post(CHAT, json=HI).json()
            until(lambda: client.get("/health").json()["model"] == "unloaded")
            assert client.get("/v1/models").json()["data"][0]["meta"]["n_ctx"] == 512
            second = client.post(CHAT, json=HI).json()
        assert first["choices"] == second["choices"]
        server.process.send_signal(signal.SIGTERM)
        assert server.ended()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others use the model: give --api-key-file"),
        (["--host", "::", "--api-key", ""], "--api-key is empty"),
        (["--ssl-cert-file", "x"], "--ssl-cert-file and --ssl-key-file go together"),
        (["--socket", "s", "--port", "1"], "--socket goes with neither --host nor --port"),
        (["--port", "70000"], "--port"),
        (["--temp", "-1"], "temperature (--temp) is outside its range"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    llama4: Command, endless: Path, arguments: list[str], said: str
) -> None:
    result = llama4("serve", endless, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_what_cannot_be_used_is_one_error(llama4: Command, endless: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    pem = tmp_path / "pem"
    pem.write_text("no certificate")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in (
            (["--port", port], f"cannot listen on port {port} of 127.0.0.1"),
            (["--host", "no.such.name.invalid", "--api-key", "x"], "is not an address of this"),
            (["--api-key-file", empty], "has no keys"),
            (["--api-key-file", tmp_path / "none"], "does not exist"),
            (["--ssl-cert-file", pem, "--ssl-key-file", pem], "certificate and its key"),
            (["--slot-save", empty], "cannot make the directory"),
            (["--alias", " "], "alias is empty"),
            (["--cors-origin", "a\nb"], "cors_origins (--cors-origin)"),
            (["--cors-origin", "https://a/page"], "cors_origins (--cors-origin) has what is no"),
            (["--allowed-host", "box:80"], "hosts (--allowed-host) has what is no name"),
            (["--max-body", "0"], "max_body (--max-body) is outside its range"),
        ):
            result = llama4("serve", endless, *arguments)
            assert (result.exit_code, result.stdout) == (1, "")
            assert said in result.stderr.splitlines()[-1]
    assert "does not exist" in the_error(llama4("serve", tmp_path / "none.gguf"))


def test_a_model_that_cannot_be_loaded_ends_the_server(endless: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(endless.read_bytes()[:-1000])
    with serving(short, "--port", 0) as server:
        failed = server.until("failed")
        assert server.ended()[0] == 1
    assert failed["error"] == "ModelFileError"
    assert "short.gguf" in failed["problem"]


def test_without_the_extra_one_error_says_what_to_install(
    llama4: Command, endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("starlette", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    line = the_error(llama4("serve", endless))
    assert "found no starlette, uvicorn" in line
    assert "pip install 'llama4-edge[server]'" in line

"""Who may ask, from where, and with which key: over a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from llama4_edge import Model
from llama4_edge.errors import SettingError
from llama4_edge.server.settings import ServerSettings
from tests.server.running import RunningServer, running_server

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
KEYS = ("first-key", "sécond-key")


@pytest.fixture(scope="module")
def guarded(tiny_model: Model) -> Iterator[RunningServer]:
    settings = ServerSettings(
        api_keys=KEYS, cors_origins=("https://chat.example",), hosts=("localhost", "box.example")
    )
    with running_server(tiny_model, settings) as server:
        yield server


@pytest.fixture
def client(guarded: RunningServer) -> Iterator[httpx.Client]:
    with guarded.client() as one:
        yield one


def error_of(answer: httpx.Response) -> dict[str, object]:
    error: dict[str, object] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_as_a_bearer_and_as_anthropics_header(
    client: httpx.Client, key: str
) -> None:
    for header in ((b"Authorization", f"Bearer {key}".encode()), (b"x-api-key", key.encode())):
        assert client.post(CHAT, json=BODY, headers=[header]).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer first-ke"}, {"Authorization": "Basic first-key"},
     {"Authorization": "Bearer"}, {"x-api-key": "first-key "[:-2]}],
)  # fmt: skip
def test_without_a_right_key_nothing_opens(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.post(CHAT, json=BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer)["type"] == "authentication_error"
    # An unknown path tells nothing either.
    assert client.get("/v1/nothing", headers=headers).status_code == 401
    assert client.get("/v1/models", headers=headers).status_code == 401


def test_whether_it_is_there_is_told_to_all(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok", "model": "ready"}


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "localhost..", "", "a b", "[::1", "[::1]evil",
     "evil@localhost", "localhost@evil", "localhost:evil", "localhost/x", "127.0.0.1.evil.example",
     "[evil.example]", "::1", "2130706433"],
)  # fmt: skip
def test_another_name_of_this_machine_is_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/health", headers={"Host": host})
    assert answer.status_code in (400, 403)
    if answer.status_code == 403:
        assert error_of(answer)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:99", "localhost.:80", "127.0.0.1:1", "[::1]:80", "10.0.0.7",
     "box.example", "box.example."],
)  # fmt: skip
def test_its_own_names_and_addresses_are_not(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_pages_elsewhere_are_refused_unless_allowed(client: httpx.Client) -> None:
    key = {"x-api-key": "first-key"}
    answer = client.post(CHAT, json=BODY, headers={**key, "Origin": "https://evil.example"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers
    answer = client.post(CHAT, json=BODY, headers={**key, "Origin": "https://chat.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert "origin" in answer.headers["vary"].lower()


def test_a_browser_may_ask_first_without_a_key(client: httpx.Client) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    answer = client.options(CHAT, headers={**asked, "Origin": "https://chat.example"})
    assert answer.status_code == 204
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "x-a"
    answer = client.options(CHAT, headers={**asked, "Origin": "https://evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize("origin", ["null", "", "http://[::1", "//", "x"])
def test_what_is_no_origin_is_refused(client: httpx.Client, origin: str) -> None:
    answer = client.post(CHAT, json=BODY, headers={"Origin": origin, "x-api-key": "first-key"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "origin_not_allowed")


def test_its_own_page_is_of_its_own_origin(guarded: RunningServer, client: httpx.Client) -> None:
    headers = {"Origin": guarded.url, "x-api-key": "first-key"}
    assert client.post(CHAT, json=BODY, headers=headers).status_code == 200


def test_names_and_origins_are_read_as_browsers_send_them() -> None:
    settings = ServerSettings(
        hosts=("Box.Example.", "[::1]", "fe80::1"), cors_origins=("https://Chat.example/", "null")
    )
    assert settings.hosts == ("box.example", "::1", "fe80::1")
    assert settings.cors_origins == ("https://chat.example", "null")


@pytest.mark.parametrize("host", ["box:80", "http://box", "[box]", "a/b"])
def test_what_no_host_can_be_called_is_refused(host: str) -> None:
    with pytest.raises(SettingError, match="hosts has what is no name of a host"):
        ServerSettings(hosts=(host,))


@pytest.mark.parametrize("origin", ["chat.example", "https://a/page", "https://*.example", "a://"])
def test_what_no_page_comes_from_is_refused(origin: str) -> None:
    with pytest.raises(SettingError, match="cors_origins has what is no origin of a page"):
        ServerSettings(cors_origins=(origin,))


def test_no_key_is_in_what_settings_show() -> None:
    assert "secret" not in repr(ServerSettings(api_keys=("secret",)))


def test_pieces_of_an_answer_are_sent_at_once(guarded: RunningServer) -> None:
    with guarded.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100)
        # Those of tests before this one may not have ended yet.
        (accepted,) = (
            one.transport.get_extra_info("socket")
            for one in list(guarded.running.server_state.connections)
            if one.transport.get_extra_info("peername") == connection.getsockname()
        )
        # Without it, a piece waits up to 40 ms for the one before to be acknowledged.
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

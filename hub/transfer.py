"""One request to the hub and its answer, bounded in time and in bytes whatever the hub sends.

Promises: the headers come within half a minute, redirects included; a body brings a kibibyte a
second at least, or ends; text has a limit and a deadline. The token goes to the hub's own host
only, nothing is decompressed, and no redirect leaves HTTP. What another try may mend is a
`PassingError`, what the hub refuses a `RefusedError`, and what no hub answers a `HubError`.

Token, endpoint, proxies, certificates and offline mode are huggingface_hub's own settings.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from .._version import __version__
from ..errors import HubError
from ..units import bytes_text, seconds_text

# From the request to the headers of its answer, all redirects in between.
HEADERS_SECONDS = 30.0
# A transfer ends that brought less than this a second over so many seconds of waiting for it.
STALL_SECONDS = 30.0
STALL_RATE = 1024
_MOST_REDIRECTS = 10
# Of the body of an error, which may explain it.
_ERROR_BYTES = 64 << 10
_ERROR_SECONDS = 10.0
_SHOWN = 300  # characters of what the hub says that an error repeats

# What another try may not meet.
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
# How the hub says that nothing is left of a quota, and in how many seconds there will be.
_QUOTA = re.compile(r"\br=0\s*;\s*t=([0-9]{1,9})\b")
_SECONDS = re.compile(r"[0-9]{1,9}")


class PassingError(Exception):
    """A failure that another try may not meet.

    Args:
        reason: what failed.
        wait: how long the hub asked for, in seconds.
        is_slow: each try takes long to fail so.
    """

    def __init__(self, reason: str, wait: float | None = None, *, is_slow: bool = False) -> None:
        super().__init__(shown(reason))
        self.wait = wait
        self.is_slow = is_slow


class RefusedError(Exception):
    """The hub's answer is an error.

    Args:
        status: of HTTP.
        code: the hub's word for the error, such as ``GatedRepo``.
        message: what the hub says about it.
        url: what was asked for.
    """

    def __init__(self, status: int, code: str, message: str, url: str) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.code = code
        self.message = message
        self.url = url


@dataclass(frozen=True)
class Answer:
    """A body that was asked for: status 200 or 206.

    Args:
        status: of HTTP.
        headers: of each redirect, and last of the answer itself.
        response: the client's; must not be read but by these methods.
    """

    status: int
    headers: tuple[Mapping[str, str], ...]
    response: Any

    def chunks(self, seconds: float | None = None) -> Iterator[bytes]:
        """The body as it arrives.

        Args:
            seconds: for all of it; without, it may take any time at a rate of `STALL_RATE`.

        Raises:
            PassingError: it comes too slowly.
            HTTPError: the connection failed.
        """
        return _Watch(self.response, seconds).chunks()

    def data(self, limit: int, seconds: float) -> bytes:
        """All of the body.

        Raises:
            HubError: it has more than `limit` bytes.
            PassingError: it takes longer than `seconds`.
            HTTPError: the connection failed.
        """
        parts, nbytes = [], 0
        for chunk in self.chunks(seconds):
            parts.append(chunk)
            nbytes += len(chunk)
            if nbytes > limit:
                raise not_a_hub(f"an answer of more than {bytes_text(limit)}")
        return b"".join(parts)


@contextmanager
def answered(
    url: str, *, token: str | None, headers: Mapping[str, str] | None = None
) -> Iterator[Answer]:
    """What the hub answers to a GET of `url`, while the block runs.

    Args:
        url: on the hub.
        token: to use instead of the one that ``hf auth login`` or HF_TOKEN has set.
        headers: further ones of the request.

    Raises:
        PassingError: there was none in time, or one that may be another the next time.
        RefusedError: it is an error.
        HubError: it is none that a hub gives.
        HTTPError: the connection failed.
        OfflineModeIsEnabled: nothing may be asked for.
    """
    # Timeouts of the client are for each read, and whoever sends a byte at a time never meets one.
    seconds = max(HEADERS_SECONDS, 2.0 * constants.HF_HUB_DOWNLOAD_TIMEOUT)
    answer = _within(seconds, lambda: _exchange(url, _headers(token, headers or {})))
    try:
        yield answer
    finally:
        answer.response.close()


def not_a_hub(found: str) -> HubError:
    """The error that something else answers in the hub's place."""
    return HubError(
        f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does",
        found=shown(found),
        hint="Check HF_ENDPOINT, and whether a proxy answers in its place.",
    )


def shown(text: str) -> str:
    """Foreign text in one short line."""
    line = " ".join(text[: 4 * _SHOWN].split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def known_token(token: str | None) -> str | None:
    """The token that is sent: this one, or the one that ``hf auth login`` or HF_TOKEN has set.

    Raises:
        HubError: it cannot be had, or is not one.
    """
    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        try:
            token = get_token()
        except Exception as error:  # the client's, about a file or the hub's answer to a renewal
            raise HubError(
                "the token for the hub cannot be had",
                found=shown(f"{type(error).__name__}: {error}"),
                hint="Set HF_TOKEN, or run `hf auth login`.",
            ) from error
    # The client's own error about it would show it.
    if token is not None and not (token.isascii() and token.isprintable()):
        raise HubError(
            "the token for the hub is not one",
            found="other characters than letters, digits and underscores",
            hint="Correct or unset HF_TOKEN, or run `hf auth login`.",
        )
    return token


def _headers(token: str | None, more: Mapping[str, str]) -> dict[str, str]:
    # huggingface_hub's own headers say more, for which it asks the hub without any bounds.
    headers = {"User-Agent": f"llama4-edge/{__version__}"}
    # A body that comes compressed anyway is refused: a kilobyte of it may be a gigabyte.
    headers |= {"Accept-Encoding": "identity", **more}
    sent = known_token(token)
    if sent is not None:
        headers["Authorization"] = f"Bearer {sent}"
    return headers


def _within(seconds: float, job: Callable[[], Answer]) -> Answer:
    """The result of `job`, which a thread does that is left alone when it takes longer."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # raised below, by `result`
            future.set_exception(error)

    threading.Thread(target=run, name="hub", daemon=True).start()
    try:
        return future.result(seconds)
    except BaseException as error:
        future.add_done_callback(_close)
        if isinstance(error, FutureTimeoutError) and not future.done():
            reason = f"no answer within {seconds_text(seconds)}"
            raise PassingError(reason, is_slow=True) from None
        raise


def _close(late: Future[Answer]) -> None:
    if late.exception() is None:
        late.result().response.close()


def _exchange(url: str, headers: Mapping[str, str]) -> Answer:
    """Ask, and follow redirects, until there is an answer with a body that was asked for."""
    try:
        client = get_session()
        request = client.build_request(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        seen: list[Mapping[str, str]] = []
        for _ in range(_MOST_REDIRECTS + 1):
            response = _send(client, request)
            seen.append(response.headers)
            # The client drops the token where the next host is another.
            following = response.next_request
            if following is None:
                return _accepted(response, tuple(seen))
            response.close()
            _check_redirect(request.url, following.url)
            request = following
    except (HTTPError, HubError, PassingError, RefusedError, OfflineModeIsEnabled):
        raise
    except Exception as error:  # the client's, about an answer that it does not understand
        raise not_a_hub(f"{type(error).__name__}: {error}") from error
    raise not_a_hub(f"more than {_MOST_REDIRECTS} redirects")


def _send(client: Any, request: Any) -> Any:
    if request.url.scheme not in ("http", "https") or not request.url.host:
        raise not_a_hub(f"{request.url}, which is not an address of HTTP")
    try:
        return client.send(request, stream=True, follow_redirects=False)
    except HTTPError as error:
        if _distrusts(error):
            raise HubError(
                f"the certificate of {request.url.host} is not trusted",
                found=shown(str(error)),
                hint="Check the date of this machine; behind a proxy that has its own "
                "certificates, set SSL_CERT_FILE to them.",
            ) from error
        raise


def _distrusts(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_redirect(before: Any, after: Any) -> None:
    if before.scheme == "https" and after.scheme == "http":
        raise not_a_hub(f"a redirect from https to {after}")


def _accepted(response: Any, headers: tuple[Mapping[str, str], ...]) -> Answer:
    """The answer, if it is what was asked for.

    Raises:
        PassingError, RefusedError, HubError: it is not.
    """
    try:
        if response.status_code not in (200, 206):
            raise _refused(response)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise not_a_hub(f"a body with Content-Encoding {encoding}")
    except BaseException:
        response.close()
        raise
    return Answer(response.status_code, headers, response)


def _refused(response: Any) -> Exception:
    status, headers = response.status_code, response.headers
    if status in _PASSING:
        quota = _QUOTA.search(headers.get("RateLimit", "")) if status == 429 else None
        after = headers.get("Retry-After", quota.group(1) if quota else "")
        wait = float(after) if _SECONDS.fullmatch(after) else None
        return PassingError(f"HTTP status {status}", wait)
    if status < 400:
        return not_a_hub(f"HTTP status {status}")
    message = headers.get("X-Error-Message") or _explanation(response)
    return RefusedError(
        status, headers.get("X-Error-Code", ""), shown(message), shown(str(response.url))
    )


def _explanation(response: Any) -> str:
    """What the body of an error says, if it is the hub's JSON."""
    data, end = b"", time.monotonic() + _ERROR_SECONDS
    with suppress(HTTPError, PassingError):
        for chunk in _Watch(response, _ERROR_SECONDS).chunks():
            data += chunk
            if len(data) > _ERROR_BYTES or time.monotonic() > end:
                return ""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, str) else ""


class _Watch:
    """The body of a response, ended where it comes too slowly.

    Args:
        response: its body is read here.
        seconds: for all of it, if there is a deadline.
    """

    def __init__(self, response: Any, seconds: float | None) -> None:
        self._response = response
        self._seconds = STALL_SECONDS if seconds is None else seconds
        self._has_deadline = seconds is not None
        self._asked_at: float | None = None
        self._over = threading.Event()
        self._expired = False

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they arrive."""
        # Of any other body each packet is a chunk, so that the checks between chunks suffice.
        if "Transfer-Encoding" in self._response.headers:
            threading.Thread(target=self._end_late_read, name="hub watch", daemon=True).start()
        body = self._response.iter_raw()
        waited, nbytes = 0.0, 0
        try:
            while (chunk := self._next(body)) is not None:
                waited += chunk[1]
                nbytes += len(chunk[0])
                if waited > self._seconds:
                    if self._has_deadline or nbytes < self._seconds * STALL_RATE:
                        raise self._slow()
                    waited, nbytes = 0.0, 0
                yield chunk[0]
        finally:
            self._over.set()

    def _next(self, body: Iterator[bytes]) -> tuple[bytes, float] | None:
        """The next chunk and how long it was waited for; None at the end."""
        self._asked_at = began = time.monotonic()
        try:
            chunk = next(body, None)
        except HTTPError:
            if self._expired:
                raise self._slow() from None
            raise
        finally:
            self._asked_at = None
        if self._expired:
            raise self._slow()
        return None if chunk is None else (chunk, time.monotonic() - began)

    def _slow(self) -> PassingError:
        seconds = seconds_text(self._seconds)
        if self._has_deadline:
            return PassingError(f"an answer that takes more than {seconds}", is_slow=True)
        reason = f"less than {bytes_text(STALL_RATE)} a second for {seconds}"
        return PassingError(reason, is_slow=True)

    def _end_late_read(self) -> None:
        """Break the connection when one read takes too long: a thread of its own.

        The client reads on by itself while what frames a chunk comes, byte by byte.
        """
        while not self._over.wait(min(1.0, self._seconds / 4)):
            asked_at = self._asked_at
            if asked_at is not None and time.monotonic() - asked_at > self._seconds:
                self._expired = True
                stream = self._response.extensions.get("network_stream")
                peer = stream.get_extra_info("socket") if stream is not None else None
                if peer is not None:
                    with suppress(OSError):
                        socket.socket.shutdown(peer, socket.SHUT_RDWR)
                return

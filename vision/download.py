"""Fetches one picture from the web, for whoever allows it.

Promises that no more than so many bytes are taken, and that what fails is one ImageError.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from ..errors import ImageError
from ..units import bytes_text
from ..untrusted import brief

_TIMEOUT = 30.0  # seconds without a byte
_PIECE = 2**20


def downloaded(url: str, most: int) -> bytes:
    """What is at a URL of http or https.

    Args:
        most: bytes that it may have.

    Raises:
        ImageError: it cannot be fetched, or is larger.
    """
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "llama4-edge"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            while piece := answer.read(_PIECE):
                data += piece
                if len(data) > most:
                    raise ImageError(
                        f"{brief(url)} is too large", expected=f"at most {bytes_text(most)}"
                    )
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it has the connection
        raise ImageError(f"{brief(url)} cannot be fetched", found=brief(error)) from None
    return bytes(data)

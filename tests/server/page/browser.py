"""Chromium, driven by Playwright, which is in the environment of other people's clients.

``CHROMIUM`` names the browser, ``LLAMA4_CLIENTS`` another environment that has Playwright.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    Page = Any
    Browser = Any

ROOT = Path(__file__).parents[3]
CLIENTS = Path(os.environ.get("LLAMA4_CLIENTS", ROOT / ".venv-clients"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The browser; skips the test, and says so, where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("Chromium is not installed: THE PAGE IS NOT TESTED (CHROMIUM names it)")
    return found


def import_playwright() -> Any:
    """Playwright's module; skips the test, and says so, where there is none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = os.fspath(CLIENTS / "lib" / version / "site-packages")
    sys.path.append(packages)  # behind all that these tests are run with
    try:
        import playwright.sync_api
    except ImportError:
        pytest.skip(
            f"Playwright is not in {CLIENTS}: THE PAGE IS NOT TESTED (make test-all has it)"
        )
    finally:
        sys.path.remove(packages)
    return playwright.sync_api


@contextmanager
def running_browser() -> Iterator[Browser]:
    """The browser, without a window."""
    path = chromium()
    with import_playwright().sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()

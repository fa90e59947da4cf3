"""What the page's Markdown makes of texts, in Node, without a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from llama4_edge.server.page.files import FOLDER

PROGRAM = Path(__file__).with_name("run_markdown.mjs")


def of_texts(what: str, texts: Sequence[str]) -> list[Any]:
    """``html``, ``size`` or ``pieces`` of each text; skips the test where there is no Node."""
    node = os.environ.get("NODE") or shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: the page's Markdown is NOT TESTED (NODE names it)")
    with TemporaryDirectory() as folder:
        for name in ("markdown.js", "inlines.js"):
            shutil.copy(FOLDER / name, folder)
        # Without it, older releases of Node read modules as what there was before them.
        (Path(folder) / "package.json").write_text('{"type": "module"}')
        module = os.fspath(Path(folder) / "markdown.js")
        command = [node, os.fspath(PROGRAM), module, what]
        done = subprocess.run(
            command,
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers

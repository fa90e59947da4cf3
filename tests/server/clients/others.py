"""Programs of other people, which have an environment of their own (`make test-all` makes it).

``LLAMA4_CLIENTS`` names another virtual environment that has them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = Path(os.environ.get("LLAMA4_CLIENTS", ROOT / ".venv-clients"))
PYTHON = ENVIRONMENT / "bin" / "python"

needs_others = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"{ENVIRONMENT} is not there: make test-all makes it"
)


def run_other(*arguments: str, directory: Path, seconds: float = 300) -> str:
    """What a program of that environment prints; it must end with status 0.

    Args:
        arguments: of its Python: ``-m`` and a module, or ``-c`` and a text.
        directory: where it runs and keeps what it caches.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "OPENAI_API_KEY": "none",
        # Nothing is fetched.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "NLTK_DATA": str(directory),
    }
    done = subprocess.run(
        [str(PYTHON), *arguments], cwd=directory, env=environment, timeout=seconds,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

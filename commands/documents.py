"""``--file``: documents that come before the prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ContextFullError
from ..terminal.console import note
from .declare import option
from .stdin import read_prompt

if TYPE_CHECKING:
    from ..chat.documents import Document
    from ..model import Model

_COUNTED = 1_000_000
"""Tokens beyond the context that are counted, which takes seconds."""


def files_option() -> Any:
    """The option that several commands share."""
    return option(
        "--file", kind=str, metavar="FILE", multiple=True,
        help="Put a document before the prompt, with its name: a file, a folder, a pattern such as "
        "'*.md', or - for standard input. May be given several times.",
    )  # fmt: skip


def read_files(paths: Sequence[str]) -> list[Document]:
    """The documents of the paths, in their order.

    Raises:
        SettingError: one cannot be read, or is not text.
        Llama4EdgeError: standard input is not UTF-8, or endless.
    """
    if not paths:
        return []
    from ..chat.documents import read_documents

    return read_documents(paths, lambda: read_prompt("-"))


def check_files(model: Model, documents: Sequence[Document]) -> None:
    """See whether documents fit; say on a terminal how many tokens they have.

    Raises:
        ContextFullError: they do not; says by how much.
    """
    n_ctx = model.engine.settings.n_ctx
    texts = [str(document) for document in documents]
    may_not_fit = sum(map(len, texts)) > n_ctx
    # Counting them is work that nobody needs who does not watch, where they fit in any case.
    if not documents or not (may_not_fit or sys.stderr.isatty()):
        return
    count, most = 0, n_ctx + _COUNTED
    for text in texts:
        count += len(model.vocabulary.encode(text, limit=most - count))
        if count > most:
            break
    names = documents[0].name if len(documents) == 1 else f"{len(documents)} documents"
    if count > n_ctx:
        # With an eighth more for what is asked and answered.
        wanted = -(-count * 9 // (8 * 1024))
        may_be = count <= most and wanted * 1024 <= model.info.hparams.n_ctx_train
        longer = f", or a larger context: -c {wanted}k" if may_be else ""
        at_least = "at least " if count > most else ""
        raise ContextFullError(
            f"{names}: too long for the context by {at_least}{count - n_ctx:,} tokens",
            found=f"{at_least}{count:,} tokens",
            expected=f"at most {n_ctx:,}, with the question and the answer",
            hint=f"Give less text{longer}.",
        )
    if sys.stderr.isatty():
        note(f"{names}: {count:,} tokens of {n_ctx:,}.")


def with_files(documents: Sequence[Document], text: str) -> str:
    """The documents and then `text`."""
    if not documents:
        return text
    from ..chat.documents import joined

    return joined(text, documents)

"""``--file``: documents that come before the prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..terminal.console import note
from .declare import option
from .stdin import read_prompt

if TYPE_CHECKING:
    from ..chat.documents import Document
    from ..model import Model

# A token of Llama 4's has hardly more: a longer text cannot fit, and counting it would take long.
_MOST_CHARACTERS_PER_TOKEN = 16


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
    from ..chat.documents import Document, read_documents

    documents: list[Document] = []
    for path in paths:
        if path == "-":
            documents.append(Document("standard input", read_prompt("-")))
        else:
            documents += read_documents([path])
    unique = {document.name: document for document in documents}
    return list(unique.values())


def with_files(model: Model, documents: Sequence[Document], text: str) -> str:
    """The documents and then `text`; says on a terminal how many tokens they have."""
    if not documents:
        return text
    from ..chat.documents import joined

    content = joined(text, documents)
    n_ctx = model.engine.settings.n_ctx
    # Counting them is work that nobody needs who does not watch.
    if sys.stderr.isatty() and len(content) <= _MOST_CHARACTERS_PER_TOKEN * n_ctx:
        count = sum(len(model.tokenize(str(document))) for document in documents)
        names = documents[0].name if len(documents) == 1 else f"{len(documents)} documents"
        note(f"{names}: {count:,} tokens of {n_ctx:,}.")
    return content

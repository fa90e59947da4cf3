"""Every error that llama4-edge raises on purpose, as one tree.

    Llama4EdgeError
    ├── CheckpointError       a checkpoint directory that cannot be read, or is incomplete
    │   ├── HubError          a repository on the hub that cannot be fetched, or is incomplete
    │   ├── UnsupportedError  a complete checkpoint that llama.cpp cannot represent
    │   └── DamagedTensorError  a tensor with infinities, NaN, or numbers that are too large
    ├── RecipeError           an unknown recipe or tensor type, or an override that matches nothing
    ├── SettingError          a setting outside its range; also a ValueError
    ├── OutputError           the target exists, the disk is too small, or writing failed
    ├── ModelFileError        a GGUF that is truncated, damaged or of another architecture
    ├── EngineError           llama.cpp refused to load, to make a context or to decode
    │   ├── AllocationError   a device does not have the memory
    │   ├── ContextFullError  the prompt, or the answer, does not fit into the context
    │   ├── BusyError         too much else is being made; the same may be asked again later
    │   ├── FormError         an answer that cannot be held to its form; also a SettingError
    │   └── WorkerError       a worker that cannot be reached, or whose connection was lost
    ├── TemplateError         a chat template that is missing or does not render
    ├── VocabularyError       a tokenizer that llama.cpp would read differently
    ├── SessionError          a saved conversation that cannot be read or written
    └── ImageError            what is not a picture, or one that is damaged or too large

The library raises; only the command line prints and exits.
"""

from __future__ import annotations

from collections.abc import Iterable


class Llama4EdgeError(Exception):
    """Says what is wrong and where, then what was found, what was expected and what to do.

    Args:
        problem: one clause that names the file, tensor or setting at fault.
        found: what was there.
        expected: what should have been there.
        hint: what the reader can do about it, as an imperative sentence.
    """

    def __init__(
        self,
        problem: str,
        *,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.found = found
        self.expected = expected
        self.hint = hint
        parts = [problem]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        message = ", ".join(parts)
        super().__init__(f"{message}. {hint}" if hint else message)

    def as_dict(self) -> dict[str, str | None]:
        """The same fields for a program to read (``--json``)."""
        return {
            "error": type(self).__name__,
            "problem": self.problem,
            "found": None if self.found is None else str(self.found),
            "expected": None if self.expected is None else str(self.expected),
            "hint": self.hint,
        }


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """The `hint` of an error about an unknown name; None where no choice resembles `word`.

    >>> raise RecipeError("unknown recipe", found=name, hint=did_you_mean(name, RECIPES))

    Args:
        word: the name that is unknown. Its case, dashes and dots are ignored.
        choices: the names that are known. At most three are suggested, the closest first.
    """
    from difflib import SequenceMatcher  # needed by few runs, and slow to import

    letters = _letters(word)
    if not letters or len(letters) > _LONGEST_WORD:
        return None
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(letters)
    likeness: dict[str, float] = {}
    for choice in choices:
        matcher.set_seq1(_letters(choice[:_LONGEST_WORD]))
        if matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE:
            likeness[choice] = matcher.ratio()
    best = max(likeness.values(), default=0.0)
    close = [name for name in likeness if likeness[name] >= best - _AS_ALIKE]
    if not close:
        return None
    *others, last = sorted(close, key=lambda name: -likeness[name])[:3]
    return f"Did you mean {', '.join(others)} or {last}?" if others else f"Did you mean {last}?"


# Of the letters of two words, from 0 to 1: from where on one may be meant for the other, and how
# much less than the best is still worth saying.
_ALIKE, _AS_ALIKE = 0.65, 0.15
_LONGEST_WORD = 100


def _letters(word: str) -> str:
    """What a name is compared by: its case and its dashes are easily got wrong."""
    return "".join(letter for letter in word.casefold() if letter.isalnum())


class CheckpointError(Llama4EdgeError):
    """A checkpoint directory that cannot be read, or is incomplete."""


class HubError(CheckpointError):
    """A repository on the Hugging Face Hub that cannot be fetched, or is incomplete."""


class UnsupportedError(CheckpointError):
    """A complete checkpoint that llama.cpp cannot represent."""


class DamagedTensorError(CheckpointError):
    """A stored tensor holds infinities, NaN, or numbers that are too large."""


class RecipeError(Llama4EdgeError):
    """An unknown recipe or tensor type, or an override that matches no tensor."""


class SettingError(Llama4EdgeError, ValueError):
    """A setting outside its range."""


class OutputError(Llama4EdgeError):
    """The target exists, the disk is too small, or writing failed."""


class ModelFileError(Llama4EdgeError):
    """A GGUF file that is truncated, damaged or of another architecture."""


class EngineError(Llama4EdgeError):
    """llama.cpp refused to load a model, to make a context or to decode."""


class AllocationError(EngineError):
    """llama.cpp could not allocate the memory that it needs on a device."""


class BusyError(EngineError):
    """Too much else is being made; the same may be asked again later."""


class FormError(EngineError, SettingError):
    """An answer that cannot be held any further to the form that was asked for.

    Args:
        field: the setting that the form came in.
        reason: why it cannot.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(
            f"the answer cannot be held to {field} any further",
            found=reason,
            hint="Simplify it, its regular expressions above all.",
        )
        self.field = field


class ContextFullError(EngineError):
    """The prompt, or the answer, does not fit into the context."""


class WorkerError(EngineError):
    """A worker that cannot be reached, is not one, or whose connection was lost."""


class TemplateError(Llama4EdgeError):
    """A chat template that is missing or does not render these messages."""


class VocabularyError(Llama4EdgeError):
    """A tokenizer that llama.cpp would read differently."""


class SessionError(Llama4EdgeError):
    """A saved conversation that cannot be read or written."""


class ImageError(Llama4EdgeError):
    """What is not a picture, or one that is damaged or too large."""

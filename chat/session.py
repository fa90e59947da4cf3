"""Sessions: a conversation and what a model has read of it, kept in a file for another process.

Promises that whoever opens one goes on as if the process had never ended, or is told which part of
the file keeps it from that; and that the text opens all the same. Knows nothing of terminals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ..errors import ContextFullError, EngineError, SessionError
from ..runtime.adapters import Scales
from ..runtime.checked_adapters import digest_of
from ..runtime.files.session_file import OnProgress, SessionFile
from ..runtime.files.session_writer import SessionWriter
from ..runtime.fingerprint import Fingerprint, UsedAdapter
from ..vision.layout import tile_count, tile_grid
from ..vision.projector import row_names
from ..vision.seen import SEEN
from .conversation import Conversation, Message, as_json, as_record, conversation_in
from .pictures import files_in

if TYPE_CHECKING:
    from ..runtime.engine import Engine
    from ..runtime.features import SeenPicture
    from ..runtime.files.adapter_file import AdapterInfo
    from ..runtime.files.model_file import ModelInfo
    from ..runtime.state import SequenceState
    from .prompt import Messages


@dataclass(frozen=True)
class Session:
    """What is in a session's file.

    Args:
        conversation: what was said; without messages, where a text was continued.
        tokens: what need not be read again, () where that is nothing.
        bytes: of the state.
        seconds: that saving or reopening it took.
    """

    conversation: Conversation
    tokens: tuple[int, ...] = ()
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SessionSummary:
    """What `llama4_edge.inspect` says of a session's file.

    ``fingerprint`` and all after it are None, 0 or empty where the file's head is damaged.

    Args:
        bytes: of the file.
        version: of its format.
        conversation: what was said.
        changes: how often the conversation was changed since all of the file was written.
        torn: bytes at its end of a change that was not written whole.
        fingerprint: which model's state it has, with which settings.
        writer: the release that wrote it.
        tokens: that the state has.
        state_bytes: of the state.
        checkpoints: after how many tokens there is one, so that an earlier chunk can be gone on
            from.
    """

    path: str
    bytes: int
    version: int
    conversation: Conversation
    changes: int
    torn: int
    fingerprint: Fingerprint | None
    writer: str
    tokens: int
    state_bytes: int
    checkpoints: tuple[int, ...]

    @classmethod
    def of(cls, file: SessionFile) -> SessionSummary:
        """That of a file whose text was read."""
        head = file.head
        return cls(
            path=str(file.path),
            bytes=file.size,
            version=file.version,
            conversation=conversation_in(file),
            changes=len(file.turns),
            torn=file.torn,
            fingerprint=head.fingerprint if head else None,
            writer=head.writer if head else "",
            tokens=head.n_tokens if head else 0,
            state_bytes=head.state_bytes if head else 0,
            checkpoints=tuple(at for at, _ in head.checkpoints) if head else (),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON; those of the fingerprint and the messages among them."""
        record = {**vars(self), "kind": "session", "checkpoints": list(self.checkpoints)}
        record["fingerprint"] = self.fingerprint and asdict(self.fingerprint)
        record["conversation"] = as_record(self.conversation)
        return record


class Sessions:
    """Saves and reopens the sessions of one model.

    Args:
        engine: the model's.
        info: what is in its file.
        projector_digest: what features of its projector are told by.
    """

    def __init__(
        self, engine: Engine, info: ModelInfo, projector_digest: Callable[[], bytes]
    ) -> None:
        self._engine, self._info, self._projector_digest = engine, info, projector_digest

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        """What the states of this model are told by, but for adapters."""
        fingerprint = Fingerprint.of(self._info, self._engine.settings)
        checked, layers = self._engine.checked_adapters, self._engine.settings.control_vector_layers
        if checked is None or checked.direction is None:
            return fingerprint
        return replace(fingerprint, control_vector=checked.direction_digest(layers))

    @cached_property
    def _adapters(self) -> list[UsedAdapter]:
        """The adapters that are loaded.

        Raises:
            SessionError: a file cannot be read any more.
        """
        checked = self._engine.checked_adapters
        infos = () if checked is None else checked.adapters
        return [UsedAdapter(_digest(info), 1.0, info.path.name) for info in infos]

    def fingerprint(self, scales: Scales | None = None) -> Fingerprint:
        """What the states of this model are told by.

        Args:
            scales: of its adapters; None is what holds now.

        Raises:
            SessionError: a file of it cannot be read any more.
        """
        pairs = zip(self._adapters, scales or self._engine.adapters.scales, strict=True)
        used = [replace(adapter, scale=scale) for adapter, scale in pairs if scale]
        used.sort(key=lambda one: (one.digest, one.scale))
        return replace(self._fingerprint, adapters=tuple(used))

    def _scales_of(self, fingerprint: Fingerprint) -> Scales | None:
        """The scales of the adapters here with which a state was read; None where one is absent."""
        left = list(fingerprint.adapters)
        scales = []
        for adapter in self._adapters:
            used = next((one for one in left if one.digest == adapter.digest), None)
            scales.append(0.0 if used is None else used.scale)
            if used is not None:
                left.remove(used)
        return None if left else tuple(scales)

    def save(
        self,
        writer: SessionWriter,
        conversation: Conversation,
        state: SequenceState | None,
        on_progress: OnProgress | None = None,
    ) -> Session:
        """Write all of a session.

        Raises:
            SessionError: it cannot be written; what was there before is still there.
        """
        begun = time.monotonic()
        text = as_json(as_record(conversation), indent=None)
        pictures = [] if state is None else self._held(state, _seen(conversation))
        fingerprint = self.fingerprint(None if state is None else state.adapters)
        writer.write(text, fingerprint, state, on_progress, pictures)
        held = () if state is None else state.tokens
        nbytes = 0 if state is None else state.nbytes
        return Session(conversation, held, nbytes, time.monotonic() - begun)

    def save_read(
        self,
        path: str | os.PathLike[str],
        conversation: Conversation,
        tokens: Sequence[int] | None,
        on_progress: OnProgress | None = None,
    ) -> Session:
        """Write all of a session, with what the model has read of it.

        Args:
            tokens: of the conversation. None is what the model was asked for last, of which any
                beginning counts.

        Raises:
            SessionError: as `save`; or another process has the file open, or it is no session.
        """
        wanted = self._engine.last_prompt if tokens is None else tokens
        with SessionWriter(path) as writer:
            state = self._engine.state_of(wanted, self._engine.last_adapters)
            state = state or self._engine.state_of(wanted)
            if state is not None and tokens is not None and not is_mostly(state, tokens):
                state = None
            return self.save(writer, conversation, state, on_progress)

    def load(
        self,
        file: SessionFile,
        on_progress: OnProgress | None = None,
        *,
        any_scales: bool = False,
    ) -> Session:
        """Take in the state of a session, so that what begins like it goes on from there.

        Args:
            any_scales: whether it may have been read with other scales of the adapters than those
                that hold now, for requests that have these.

        Raises:
            SessionError: the state is damaged, of another model, of other adapters or of other
                settings, has more tokens than the context holds, or llama.cpp refuses it.
        """
        begun = time.monotonic()
        conversation = conversation_in(file)
        if file.fault is not None:
            raise file.fault
        assert file.head is not None
        scales = self._scales_of(file.head.fingerprint)
        wanted = scales if any_scales else None
        file.head.fingerprint.check(self.fingerprint(wanted), str(file.path))
        n_ctx = self._engine.settings.n_ctx
        if file.head.n_tokens > n_ctx:
            raise SessionError(
                f"{file.path}: the session does not fit into the context",
                found=f"{file.head.n_tokens} tokens",
                expected=f"at most {n_ctx}",
                hint="Open the model with a larger n_ctx.",
            )
        state = file.read_state(on_progress)
        if state is None:
            return Session(conversation, seconds=time.monotonic() - begun)
        state = replace(state, adapters=scales or ())
        try:
            self._engine.keep_state(state)
        except (EngineError, ContextFullError) as error:
            if self._engine.closed:
                raise
            raise SessionError(
                f"{file.path}: llama.cpp does not take the session's state",
                found=error.found or error.problem,
                hint="Open the model as it was when the session was saved.",
            ) from error
        for picture in self._held(state, file.head.pictures):
            SEEN.remember(picture)
        return Session(conversation, state.tokens, state.nbytes, time.monotonic() - begun)

    def _held(self, state: SequenceState, pictures: Iterable[SeenPicture]) -> list[SeenPicture]:
        """Those of which the state has all features, made by the projector that is here."""
        names = {one for one in state.tokens if one < 0}
        if not names:
            return []
        projector = self._projector_digest()
        return [
            one
            for one in dict.fromkeys(pictures)
            if names.issuperset(row_names(one.digest, projector, tile_count(tile_grid(*one.size))))
        ]


def _digest(adapter: AdapterInfo) -> str:
    try:
        return digest_of(adapter)
    except OSError as error:
        raise SessionError(
            f"{adapter.path} cannot be read any more", found=error.strerror or str(error)
        ) from None


def _seen(conversation: Conversation) -> Iterator[SeenPicture]:
    """What is known of a conversation's pictures."""
    for data in files_in(conversation.messages):
        if (seen := SEEN.of_file(data)) is not None:
            yield seen


def is_mostly(state: SequenceState, tokens: Sequence[int]) -> bool:
    """Whether at least half of a state is of these tokens: otherwise it is of something else."""
    return 2 * common_beginning(state.tokens, tokens) >= len(state.tokens)


def as_conversation(messages: Messages | tuple[()], model: str) -> Conversation:
    """Messages as they are kept, with the name of the model where they have none.

    Raises:
        SettingError: they are of the wrong type.
    """
    if isinstance(messages, Conversation):
        return messages if messages.model else replace(messages, model=model)
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    return Conversation(messages, model)  # type: ignore[arg-type]


def change_of(before: Conversation, after: Conversation) -> bytes:
    """What is appended to a file so that it has one conversation in place of another."""
    kept = common_beginning(before.messages, after.messages)
    messages = as_record(after)["messages"]
    assert isinstance(messages, list)
    return as_json({"keep": kept, "messages": messages[kept:]}, indent=None)


def common_beginning(first: Sequence[object], second: Sequence[object]) -> int:
    """How many elements two sequences begin with that are the same."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

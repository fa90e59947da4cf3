"""The chat: reads a message, shows the answer, obeys commands, until the person leaves.

Promises that no answer, error or Ctrl-C during an answer ends the chat, and that the conversation
only ever holds questions with their answers. Does not know how an answer is made: it is given a
function that makes one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..chat.conversation import Content, Conversation, Message
from ..errors import ContextFullError, Llama4EdgeError, SessionError, did_you_mean
from ..terminal.answer import AnswerWithPrompt, AnswerWriter, pieces_of, speed_text
from ..terminal.console import complain, note
from ..terminal.history import history_file
from ..terminal.prompt import Prompt, Source, decode
from .flags import with_flags
from .full_context import cut_off, dropped_text, with_hint
from .pictures import dropped_paths, named_pictures, with_pictures

if TYPE_CHECKING:
    from ..chat.answer import Completion
    from ..chat.pictures import Part
    from ..chat.tool_calls import ToolCall
    from ..chat.tool_results import ToolResult

# What to do about a full context, by what happens there.
CONTEXT_FULL = {
    "stop": "/undo drops the last exchange, /reset all of them; a larger -c holds more, and "
    "--when-full drop goes on without the oldest.",
    "drop": "Nothing older is left to drop; a larger -c holds more.",
}

# Ends an answer that was stopped: for the reader, for the file, and for the model that reads on.
STOPPED = " …"

# The note after Ctrl-C, by whether the answer had begun.
STOPPED_NOTES = {
    True: "Stopped. The answer so far is kept: /undo drops it, /retry asks again.",
    False: "Stopped before the answer began. The message is not kept; Up brings it back.",
}

HOW_TO_LEAVE = "Ctrl-D or /quit leaves the chat; Ctrl-C stops an answer."

# What the model is told of a call that the person ended.
ENDED_CALL = "Error: the user ended this call"

MAX_ROUNDS = 20
"""How many answers to one question may call tools."""

Messages = tuple[Message, ...]


def opening(system: str | None) -> Messages:
    """The messages a conversation begins with: the system message, if one was given.

    Raises:
        Llama4EdgeError: it is not UTF-8.
    """
    if system is None:
        return ()
    return (Message("system", decode(os.fsencode(system), "the system message")),)


def terminal_source() -> Prompt:
    """Messages typed here, with the history of earlier chats; says so if that cannot be kept."""
    history = None
    try:
        history = history_file()
    except SessionError as error:
        complain(str(error))
    files = [name for name, command in COMMANDS.items() if command.argument == "FILE"]
    return Prompt(list(COMMANDS), files, history)


class Answer(AnswerWithPrompt, Protocol):
    """An answer while it is being made, and when it is complete what it took."""

    @property
    def dropped_messages(self) -> int:
        """How many messages the model is not shown so far."""

    @property
    def completion(self) -> Completion:
        """The whole answer; only once it has ended."""


class Chat:
    """One conversation between a source of messages and a model.

    Args:
        reply: makes an answer to messages, piece by piece.
        source: where messages come from.
        conversation: the messages so far, or only a system message.
        interactive: whether a person is watching; asides are for them.
        max_tokens: tokens of an answer at most, if that was limited.
        fullness: the fraction of the context that messages take.
        preface: makes the first message of a conversation, or of this chat, of what was typed and
            of the messages before it.
        keep: is given the conversation whenever it has changed.
        call_tool: carries out what an answer calls; None where the model has no tools.
    """

    def __init__(
        self,
        reply: Callable[[Messages], Answer],
        source: Source,
        conversation: Conversation,
        *,
        interactive: bool,
        max_tokens: int | None,
        fullness: Callable[[Messages], float],
        preface: Callable[[str, Messages], str] = lambda text, _: text,
        keep: Callable[[Conversation], object] = lambda _: None,
        look_at: Callable[[str], tuple[Part, str]],
        call_tool: Callable[[ToolCall], ToolResult] | None = None,
    ) -> None:
        self._reply = reply
        self._source = source
        self._interactive = interactive
        self._max_tokens = max_tokens
        self._fullness_of = fullness
        self._preface = preface
        self._has_answered = False
        self._keep_elsewhere = keep
        self.conversation = conversation
        self.failures = 0
        self._dropped = 0  # messages that the last answer was made without
        self._look_at = look_at
        self._call_tool = call_tool
        self._pictures: tuple[Part, ...] = ()  # they go with the next message

    def run(self) -> None:
        """Take messages until there are no more.

        Raises:
            KeyboardInterrupt: Ctrl-C while nobody watches: a script's chat ends with it.
        """
        while self._step():
            pass

    def _step(self) -> bool:
        """One message; False when it was the last."""
        message = None
        try:
            message = self._source.read(self._fullness())
            self.take(message)
        except EOFError:
            return False
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            # Between the prompt and the first word of an answer there is a message to speak of.
            note(HOW_TO_LEAVE if message is None else STOPPED_NOTES[False])
        except Llama4EdgeError as error:
            self._fail(with_flags(str(error)))
        return True

    def take(self, text: str) -> None:
        """Answer one message, or obey one command.

        Raises:
            EOFError: the command was to quit.
            Llama4EdgeError: it could not be done; the conversation is as it was.
        """
        is_command = any(word in COMMANDS for word in text.split(maxsplit=1)[:1])
        is_watched = self._interactive and not is_command
        paths, rest = dropped_paths(text) if is_watched else ([], text)
        for path in paths:
            self._show_image(path)
        if paths:
            self._say(rest)
        elif text.startswith("/") and not text.startswith("//"):
            self._obey(text)
        else:
            self._say(text.removeprefix("/") if text.startswith("//") else text)

    def _say(self, question: str) -> None:
        """Ask this, with the pictures that wait for it."""
        if not question.strip():
            return
        before = self.conversation.messages
        begins = all(message.role != "user" for message in before) or not self._has_answered
        text = self._preface(question, before) if begins else question
        self._ask(with_pictures(self._pictures, text), before)
        if self.conversation.messages != before:  # else the message is written again
            self._pictures = ()

    def _obey(self, text: str) -> None:
        name, *rest = text.split(maxsplit=1)
        argument = rest[0].strip() if rest else ""
        command = COMMANDS.get(name)
        if command is None:
            hint = did_you_mean(name, COMMANDS) or "/help lists them; // sends a slash."
            self._fail(f"there is no command {name}. {hint}")
        elif argument and not command.argument:
            self._fail(f"{name} takes nothing after it")
        elif command.needs_argument and not argument:
            self._fail(f"{name} needs a {command.argument}")
        else:
            command.obey(self, argument)

    def _ask(self, question: Content, before: Messages) -> None:
        """Answer `question` after the messages `before`, and go on from there."""
        asked = (*before, Message("user", question))
        for _ in range(MAX_ROUNDS):
            calls = self._answer(asked)
            if not calls or not self._carry_out(calls):
                return
            asked = self.conversation.messages
        note(f"The model has called tools {MAX_ROUNDS} times; a word from you lets it go on.")

    def _answer(self, asked: Messages) -> tuple[ToolCall, ...]:
        """Show one answer, and keep it; the tools that it calls."""
        pieces: list[str] = []
        writer = AnswerWriter()
        try:
            with self._source.listening():
                answer = self._reply(asked)
                self._say_what_was_dropped(asked, answer)
                for piece in pieces_of(answer):
                    pieces.append(piece)
                    writer.write(piece)
        except (KeyboardInterrupt, SystemExit) as ending:
            if pieces:
                self._keep((*asked, Message("assistant", "".join(pieces) + STOPPED)))
            if isinstance(ending, SystemExit):  # the terminal may be gone
                raise
            if pieces:
                writer.write(STOPPED)
            writer.break_off()
            if not self._interactive:
                raise
            note(STOPPED_NOTES[bool(pieces)])
            return ()
        except ContextFullError as error:
            writer.break_off()
            raise with_hint(error, CONTEXT_FULL[self.conversation.when_full]) from error
        except Llama4EdgeError:
            writer.break_off()
            raise
        completion = answer.completion
        calls = completion.tool_calls if self._call_tool else ()
        if calls:
            writer.break_off()
        else:
            writer.end()
        self._has_answered = True
        self._keep((*asked, Message("assistant", "".join(pieces), calls)))
        self._say_what_was_dropped(asked, answer)
        self._say_how_it_went(completion)
        return calls

    def _carry_out(self, calls: tuple[ToolCall, ...]) -> bool:
        """Carry out what an answer calls; whether the model is told and goes on."""
        assert self._call_tool is not None
        for at, call in enumerate(calls):
            try:
                message = self._call_tool(call).message
            except KeyboardInterrupt:
                # A call without a result would be none that the model can go on from.
                ended = [Message("tool", ENDED_CALL, tool_call_id=one.id) for one in calls[at:]]
                self._keep((*self.conversation.messages, *ended))
                if not self._interactive:
                    raise
                note("The call was ended. What was said is kept.")
                return False
            self._keep((*self.conversation.messages, message))
        return True

    def _fullness(self) -> float | None:
        """The fraction of the context that the conversation takes, for a person to see."""
        if not self._interactive:
            return None
        if not self.conversation.messages:
            return 0.0
        try:
            return self._fullness_of(self.conversation.messages)
        except Llama4EdgeError:  # the template refuses these messages; the next answer says so
            return None

    def _say_how_it_went(self, completion: Completion) -> None:
        if self._interactive:
            note(speed_text(completion))
        if cut_off(completion, self._max_tokens):
            hint = CONTEXT_FULL[self.conversation.when_full]
            note(f"The answer ends here because the context is full. {hint}")

    def _say_what_was_dropped(self, asked: Messages, answer: Answer) -> None:
        """Say it where more messages are left out than last time."""
        count, before = answer.dropped_messages, self._dropped
        self._dropped = count
        if count > before:
            note(dropped_text(asked, count))

    def _keep(self, messages: Messages) -> None:
        self.conversation = replace(self.conversation, messages=messages)
        self._keep_elsewhere(self.conversation)

    def _fail(self, text: str) -> None:
        self.failures += 1
        complain(text)

    # What the commands do. Each is given the text after its name.

    def _help(self, _argument: str) -> None:
        lines = [f"{name} {command.argument}".rstrip() for name, command in COMMANDS.items()]
        width = max(map(len, lines))
        for line, command in zip(lines, COMMANDS.values(), strict=True):
            note(f"{line:<{width}}  {command.help}")
        note("//text sends /text. Alt-Enter, or \\ and Enter, begins a new line.")

    def _system(self, argument: str) -> None:
        system, rest = _system_apart(self.conversation.messages)
        if argument:
            new = () if argument == "-" else (Message("system", argument),)
            self._keep((*new, *rest))
            note("The system message is set." if new else "There is no system message now.")
        else:
            for line in (system[0].text if system else "There is no system message.").split("\n"):
                note(line)

    def _reset(self, _argument: str) -> None:
        forgotten = _counted(self.conversation)
        self._keep(_system_apart(self.conversation.messages)[0])
        self._pictures = ()
        note(f"Forgot {forgotten}.")

    def _save(self, argument: str) -> None:
        path = _file_named(argument)
        _refuse_other_files(path)
        self.conversation.save(path)
        note(f"Saved {_counted(self.conversation)} to {path}.")

    def _load(self, argument: str) -> None:
        path = _file_named(argument)
        loaded = Conversation.load(path)
        if loaded.messages and loaded.messages[-1].role not in ("assistant", "system", "tool"):
            raise SessionError(f"{path}: the conversation ends in a message without an answer")
        self._keep(loaded.messages)
        note(f"Loaded {_counted(loaded)} from {path}.")

    def _show_image(self, argument: str) -> None:
        shown = [self._look_at(path) for path in named_pictures(argument)]
        self._pictures = (*self._pictures, *(part for part, _ in shown))
        for _, description in shown:
            note(f"{description} It goes with the next message.")

    def _undo(self, _argument: str) -> None:
        if self._pictures:
            note(f"Dropped: {' '.join(['[picture]'] * len(self._pictures))}")
            self._pictures = ()
            return
        before, question = _before_last(self.conversation.messages)
        if question is None:
            self._fail("there is nothing to undo")
        else:
            self._keep(before)
            note(f"Dropped: {_first_line(str(question))}")

    def _retry(self, _argument: str) -> None:
        before, question = _before_last(self.conversation.messages)
        if question is None:
            self._fail("there is nothing to retry")
            return
        sampling = self.conversation.sampling
        if sampling.seed is not None or sampling.temperature == 0.0:
            note("With --seed or --temp 0 the same messages get the same answer.")
        self._ask(question.content, before)

    def _quit(self, _argument: str) -> None:
        raise EOFError  # the same end as Ctrl-D


@dataclass(frozen=True)
class Command:
    """One command of the chat; `argument` is what may follow it, in brackets if it need not."""

    argument: str
    help: str
    obey: Callable[[Chat, str], None]

    @property
    def needs_argument(self) -> bool:
        """Whether the command says nothing without its argument."""
        return bool(self.argument) and not self.argument.startswith("[")


COMMANDS: dict[str, Command] = {
    "/help": Command("", "list the commands", Chat._help),
    "/system": Command("[TEXT]", "show or set the system message; - removes it", Chat._system),
    "/reset": Command("", "forget all exchanges, keep the system message", Chat._reset),
    "/save": Command("FILE", "save the conversation", Chat._save),
    "/load": Command("FILE", "go on with a saved conversation, or a session's", Chat._load),
    "/image": Command("FILE ...", "show pictures with the next message", Chat._show_image),
    "/undo": Command("", "drop the picture that waits, or the last exchange", Chat._undo),
    "/retry": Command("", "answer the last message again", Chat._retry),
    "/quit": Command("", "leave (so does Ctrl-D)", Chat._quit),
}


def _system_apart(messages: Messages) -> tuple[Messages, Messages]:
    """The system message, if there is one, and what follows it."""
    at = 1 if messages and messages[0].role == "system" else 0
    return messages[:at], messages[at:]


def _before_last(messages: Messages) -> tuple[Messages, Message | None]:
    """The messages before the last question, and that question; None when there was none."""
    asked = [at for at, message in enumerate(messages) if message.role == "user"]
    if not asked:
        return messages, None
    return messages[: asked[-1]], messages[asked[-1]]


def _file_named(text: str) -> Path:
    """The file of a command's argument, whether it is there or not."""
    if "\0" in text:
        raise SessionError("a file's name holds no zero byte")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home here
        raise SessionError(f"{text}: there is no such home directory") from error


def _refuse_other_files(path: Path) -> None:
    from ..runtime.files.session_file import is_session

    if is_session(path) or path.suffix == ".l4s":
        raise SessionError(
            f"{path} is a session's name, and /save writes the text alone",
            hint="Choose another name. `llama4 chat --session FILE` keeps a session.",
        )
    try:
        if path.exists():
            Conversation.load(path)
    except OSError as error:
        raise SessionError(f"{path} cannot be written", found=error.strerror) from error
    except SessionError as error:
        raise SessionError(
            f"{path} exists and is not a saved conversation", hint="Choose another name."
        ) from error


def _counted(conversation: Conversation) -> str:
    count = sum(message.role == "user" for message in conversation.messages)
    return "1 exchange" if count == 1 else f"{count} exchanges"


def _first_line(text: str, limit: int = 60) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= limit else line[: limit - 1] + "…"

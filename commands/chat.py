"""`llama4 chat`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ..terminal.console import at_terminal, note
from .declare import argument, command, given, group, option, usage_error, verbose_flag
from .documents import check_files, files_option, read_files, with_files
from .full_context import when_full_option
from .loading import opened_model
from .options import AnswerOptions, EngineOptions, PlacementOptions, SamplingOptions
from .pictures import looked_at, projector_option
from .session import claimed_session, documents_to_add, kept_session, session_option
from .tools import ToolCalls, ask_at_terminal, read_tools, tools_option, yes_tools_flag

if TYPE_CHECKING:
    from ..chat.answer import Stream
    from ..chat.conversation import Message
    from ..chat.options import WhenFull
    from ..model import Model


@dataclass(frozen=True)
class ChatOptions:
    """What `llama4 chat` may be asked."""

    model: str = argument(kind=click.Path())
    system: str | None = option(
        "-sys", "--system", "--system-prompt", kind=str, metavar="TEXT",
        help="A system message before the chat.",
    )  # fmt: skip
    files: tuple[str, ...] = files_option()
    projector: str | None = projector_option()
    when_full: WhenFull | None = when_full_option()
    session: str | None = session_option()
    tools: tuple[str, ...] = tools_option()
    yes_tools: bool = yes_tools_flag()
    answer: AnswerOptions = group(AnswerOptions)
    sampling: SamplingOptions = group(SamplingOptions)
    engine: EngineOptions = group(EngineOptions)
    placement: PlacementOptions = group(PlacementOptions)
    verbose: bool = verbose_flag()


@command(ChatOptions)
def chat(options: ChatOptions) -> int:
    """Talk with a model.

    Enter sends; Alt-Enter, or a backslash at the end of a line, begins a new one. Ctrl-C stops an
    answer, Ctrl-D leaves, /help lists the commands. From a pipe, each line is a message.

    \b
    llama4 chat scout.gguf
    llama4 chat scout.gguf --system 'Answer in one sentence.' -c 128k
    llama4 chat scout.gguf --file book.md
    llama4 chat scout.gguf    # then: /image photo.jpg, or drop a file
    llama4 chat scout.gguf --session evening.l4s
    llama4 chat scout.gguf --tools weather.py
    llama4 chat scout.gguf < questions.txt
    """
    from ..chat.conversation import Conversation
    from ..terminal.keyboard import silent_terminal
    from ..terminal.prompt import Lines
    from .chat_loop import Chat, opening, terminal_source

    sampling = options.sampling.sampling()
    when_full = options.when_full or Conversation.when_full
    interactive = at_terminal()
    if options.yes_tools and not options.tools:
        raise usage_error("--yes-tools goes with --tools, whose functions it calls without asking")
    tools = read_tools(options.tools, may_ask=interactive or options.yes_tools)
    answering = {**given(options.answer), "when_full": when_full, "tools": tools}
    first = opening(options.system)
    documents = read_files(options.files)
    source = terminal_source() if interactive else Lines()

    def beginning(model: Model) -> Conversation:
        return Conversation(first, model.info.name, sampling, when_full)

    with (
        claimed_session(options.session) as file,
        silent_terminal() if interactive else nullcontext(),
        opened_model(
            options.model,
            "chat",
            options.engine,
            options.placement,
            projector=options.projector,
            verbose=options.verbose,
        ) as model,
        kept_session(model, file, beginning(model)) as session,
    ):
        # A model without a chat template is refused here, and not at each message.
        _ = model.template

        def reply(messages: tuple[Message, ...]) -> Stream:
            stream = model.chat(messages, stream=True, sampling=sampling, **answering)
            return session.answering(stream) if session else stream

        talk = Chat(
            reply,
            source,
            session.conversation if session else beginning(model),
            preface=lambda text, before: with_files(documents_to_add(documents, before), text),
            keep=session.keep if session else lambda _: None,
            look_at=lambda path: looked_at(model, path),
            call_tool=ToolCalls(tools, None if options.yes_tools else ask_at_terminal)
            if tools
            else None,
            interactive=interactive,
            max_tokens=options.answer.max_tokens,
            fullness=lambda messages: (
                len(model.chat_prompt(messages, **{**answering, "max_tokens": 0}))
                / model.engine.settings.n_ctx
            ),
        )
        check_files(model, documents_to_add(documents, talk.conversation.messages))
        if interactive:
            note(f"{model.info.name}, {model.engine.settings.n_ctx:,} tokens of context. /help")
        talk.run()
    # Somebody at a terminal has seen the errors; a script asks for the exit code.
    return 1 if talk.failures and not interactive else 0

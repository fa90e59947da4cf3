"""``/conversations``: those that the server keeps on its disk, for the page.

Promises that what is kept is what was sent, and that an answer is not waited for by what is
written aside. Knows no files; see `SessionFolder`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ..chat.conversation import Conversation, Message
from ..errors import SessionError
from ..model import Model
from .body import read_body
from .errors import ApiError
from .messages import messages_of
from .schema.conversations import ChangedConversation, NewConversation, NewName, Nothing
from .schema.openai import MessageField
from .session_folder import (
    ChangedSessionError,
    Kept,
    MissingSessionError,
    SessionFolder,
)
from .state import Server, server_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


async def _list(request: Request) -> JSONResponse:
    """The names of all, that which was changed last first; ``kept`` is whether any are kept."""
    folder = server_of(request).sessions
    entries = [] if folder is None else await asyncio.to_thread(folder.entries)
    data = [asdict(entry) for entry in entries]
    return JSONResponse({"object": "list", "kept": folder is not None, "data": data})


async def _create(request: Request) -> JSONResponse:
    """Keep a new one."""
    server, folder = _kept_by(request)
    body = await read_body(request, NewConversation)
    messages = _messages(body.messages)
    async with server.models.using() as model:
        name = model.model.info.name
        conversation = Conversation(messages, name, server.settings.sampling)
        kept = await _done(folder, lambda: folder.create(model.model, conversation))
        return JSONResponse(await _summary(server, folder, kept))


async def _read(request: Request) -> JSONResponse:
    """What was said in one."""
    server, folder = _kept_by(request)
    name = request.path_params["name"]
    kept = await _done(folder, lambda: folder.read(name))
    messages = [_as_written(message) for message in kept.conversation.messages]
    summary = await _summary(server, folder, kept)
    return JSONResponse({**summary, "model": kept.conversation.model, "messages": messages})


async def _change(request: Request) -> JSONResponse:
    """Have one say something else."""
    server, folder = _kept_by(request)
    name = request.path_params["name"]
    body = await read_body(request, ChangedConversation)
    messages = _messages(body.messages)
    kept = await _done(folder, lambda: folder.change(name, body.version, messages))
    aside = asyncio.create_task(_keep_state(server, folder, name))
    server.asides.add(aside)
    aside.add_done_callback(server.asides.discard)
    return JSONResponse(await _summary(server, folder, kept))


async def _rename(request: Request) -> JSONResponse:
    """Give one another name."""
    _, folder = _kept_by(request)
    name = request.path_params["name"]
    body = await read_body(request, NewName)
    return JSONResponse({"name": await _done(folder, lambda: folder.rename(name, body.name))})


async def _remove(request: Request) -> JSONResponse:
    """Remove one."""
    _, folder = _kept_by(request)
    name = request.path_params["name"]
    await _done(folder, lambda: folder.remove(name))
    return JSONResponse({"name": name, "deleted": True})


async def _resume(request: Request) -> JSONResponse:
    """Have the model take up what it had read of one."""
    server, folder = _kept_by(request)
    name = request.path_params["name"]
    await read_body(request, Nothing)
    async with server.models.using() as model:
        resumed = await _done(folder, lambda: folder.resume(model.model, name))
    return JSONResponse(asdict(resumed))


# --- what they share


def _kept_by(request: Request) -> tuple[Server, SessionFolder]:
    """The server, and where it keeps conversations.

    Raises:
        ApiError: it keeps none.
    """
    server = server_of(request)
    if server.sessions is None:
        raise ApiError(
            404,
            "This server keeps no conversations. Start it with --sessions DIRECTORY.",
            code="not_kept",
        )
    return server, server.sessions


async def _done(folder: SessionFolder, work: Callable[[], T]) -> T:
    """What is done in another thread, because disks and templates may be slow.

    Raises:
        ApiError: it fails, and where the server keeps its files is for its log alone.
    """
    try:
        return await asyncio.to_thread(work)
    except MissingSessionError as error:
        raise ApiError(404, str(error), "name", "conversation_not_found") from error
    except ChangedSessionError as error:
        raise ApiError(409, str(error), code="conversation_changed") from error
    except SessionError as error:
        logger.error("%s", error)
        is_full = getattr(error.__cause__, "errno", None) in _FULL
        message = folder.without_path(str(error))
        raise ApiError(507 if is_full else 500, message, code="conversation_not_kept") from error


def _messages(messages: list[MessageField]) -> tuple[Message, ...]:
    """Messages as they are kept. Whether pictures are some is found when they are asked about."""
    return Conversation(messages_of(messages)).messages  # type: ignore[arg-type]


def _as_written(message: Message) -> dict[str, Any]:
    """A message as OpenAI's protocol has it."""
    content = message.content if isinstance(message.content, str) else list(message.content)
    if message.role in ("tool", "ipython"):
        return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id or ""}
    written: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        written["tool_calls"] = [call.as_openai() for call in message.tool_calls]
    return written


async def _summary(server: Server, folder: SessionFolder, kept: Kept) -> dict[str, Any]:
    """What a change of a conversation needs to know of it; ``tokens`` if the model is here."""
    async with _model_if_here(server) as model:
        tokens = None
        if model is not None:
            tokens = await asyncio.to_thread(folder.n_tokens, model, kept.conversation)
    return {"name": kept.name, "version": kept.version, "tokens": tokens}


async def _keep_state(server: Server, folder: SessionFolder, name: str) -> None:
    async with _model_if_here(server) as model:
        if model is not None:
            await asyncio.to_thread(folder.keep_state, model, name)


async def settle(server: Server) -> None:
    """Have all that was read in the conversations' files, when the server ends."""
    if server.sessions is None:
        return
    await asyncio.gather(*server.asides, return_exceptions=True)
    async with _model_if_here(server) as model:
        if model is not None:
            await asyncio.to_thread(server.sessions.keep_states, model)


@asynccontextmanager
async def _model_if_here(server: Server) -> AsyncIterator[Model | None]:
    """The model, if it is loaded."""
    if server.models.phase != "ready":
        yield None
        return
    async with server.models.using() as model:
        yield model.model


routes = [
    Route("/conversations", _list, methods=["GET"], include_in_schema=False),
    Route("/conversations", _create, methods=["POST"], include_in_schema=False),
    Route("/conversations/{name}", _read, methods=["GET"], include_in_schema=False),
    Route("/conversations/{name}", _change, methods=["PUT"], include_in_schema=False),
    Route("/conversations/{name}", _rename, methods=["PATCH"], include_in_schema=False),
    Route("/conversations/{name}", _remove, methods=["DELETE"], include_in_schema=False),
    Route("/conversations/{name}/resume", _resume, methods=["POST"], include_in_schema=False),
]

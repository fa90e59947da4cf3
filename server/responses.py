"""OpenAI's newer protocol: ``/v1/responses``, and the responses that are kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .chat import with_checked_tools
from .endpoint import Call, Endpoint, no_answers
from .errors import ApiError
from .logprobs import chat_logprobs
from .responses_answer import ResponseWriter
from .responses_request import Asked, asked
from .responses_store import ResponseStore, StoredResponse
from .schema import responses as wire
from .state import server_of
from .writing import streamed_answer, whole_answer

_MOST_LISTED = 100


async def _create(call: Call[wire.ResponsesRequest]) -> Response:
    body, store = call.body, call.server.responses
    question = await call.prepared(lambda: _question(body, store))
    sampling = body.sampling(call.server.settings.sampling)
    options: Any = {"sampling": sampling, **await with_checked_tools(question.options)}
    stream = await call.model.chat(question.messages, stream=True, **options)

    def keep(answer: dict[str, Any]) -> None:
        if body.store is not False:
            store.put(StoredResponse(answer, question.items))

    writer = ResponseWriter(
        body,
        question.tools,
        call.server.model_name,
        sampling,
        partial(chat_logprobs, vocabulary=call.model.model.vocabulary),
        keep,
    )
    if body.stream:
        return streamed_answer(call, stream, writer)
    return await whole_answer(call, stream, writer)


async def _count(call: Call[wire.PromptFields]) -> Response:
    question = await call.prepared(lambda: _question(call.body, call.server.responses))
    options: Any = await with_checked_tools(question.options)
    prompt = await call.model.chat_prompt(question.messages, **options)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt)})


def _question(body: wire.PromptFields, store: ResponseStore) -> Asked:
    """What the model is asked, after what was said before.

    Raises:
        ApiError: the response before is not kept, or as `asked`.
    """
    before = None
    if body.previous_response_id is not None:
        before = store.get(body.previous_response_id)
        if before is None:
            raise ApiError(
                400,
                "previous_response_id: there is no such response here. Send what was said as input "
                "instead.",
                "previous_response_id",
                "previous_response_not_found",
            )
    return asked(body, before.said if before else (), store.item)


async def _get(request: Request) -> Response:
    """A response that is kept."""
    if request.query_params.get("stream", "false").lower() not in ("false", "0"):
        raise ApiError(400, "stream: a response that is kept does not come as a stream", "stream")
    return JSONResponse(_kept(request).answer)


async def _delete(request: Request) -> Response:
    """Forget a response that is kept."""
    name = _kept(request).answer["id"]
    server_of(request).responses.delete(name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


async def _input_items(request: Request) -> Response:
    """A page of what a response answered, the newest first unless the query says otherwise."""
    items = list(_kept(request).items)
    query = request.query_params
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise ApiError(400, "order is unknown, expected asc or desc", "order", "invalid_value")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _MOST_LISTED):
        message = f"limit is not a whole number from 1 to {_MOST_LISTED}"
        raise ApiError(400, message, "limit", "invalid_value")
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise ApiError(400, "after: there is no such item", "after", "invalid_value")
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit)]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
    )


def _kept(request: Request) -> StoredResponse:
    """The response that a path names.

    Raises:
        ApiError: it is not kept.
    """
    response = server_of(request).responses.get(request.path_params["name"])
    if response is None:
        raise ApiError(404, "There is no such response here.", "response_id", "not_found")
    return response


routes = [
    Endpoint(
        wire.ResponsesRequest,
        _create,
        summary="Answer a conversation, and keep it.",
        answer=wire.ResponseAnswer,
        prompt_field="input",
    ).route("/v1/responses"),
    Endpoint(
        wire.PromptFields,
        _count,
        summary="Count the tokens of a prompt.",
        answer=wire.TokenCount,
        prompt_field="input",
        n_answers=no_answers,
    ).route("/v1/responses/input_tokens"),
    Route("/v1/responses/{name}", _get),
    Route("/v1/responses/{name}", _delete, methods=["DELETE"]),
    Route("/v1/responses/{name}/input_items", _input_items),
]

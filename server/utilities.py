"""What llama.cpp's server has beside others' protocols: ``/tokenize``, ``/props`` and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._version import __version__
from ..chat.vocabulary import Vocabulary
from .chat import question_of
from .chunks import compact
from .endpoint import Call, Endpoint, no_answers
from .errors import ApiError
from .metrics import CONTENT_TYPE, Metrics
from .pieces import PiecesAnswer, json_answer
from .schema import utilities as wire
from .schema.openai import ChatRequest
from .state import server_of


async def _tokenize(call: Call[wire.TokenizeRequest]) -> Response:
    body, vocabulary = call.body, call.model.model.vocabulary
    parts = vocabulary.encoded(body.text, special=body.parse_special, add_bos=body.adds_bos)
    write = _pieces_of(vocabulary) if body.with_pieces else str
    return PiecesAnswer(_token_list(parts, write))


def _token_list(parts: Iterator[list[int]], write: Callable[[int], str]) -> Iterator[str]:
    """Tokens as JSON, so many at a time as come together."""
    beginning = '{"tokens":['
    for tokens in parts:
        if tokens:
            yield beginning + ",".join(map(write, tokens))
            beginning = ","
    yield "]}" if beginning == "," else f"{beginning}]}}"


def _pieces_of(vocabulary: Vocabulary) -> Callable[[int], str]:
    """Writes a token with its text, or its bytes where these are no text."""

    @cache
    def written(token: int) -> str:
        data = vocabulary.token_bytes(token, special=True)
        try:
            piece: str | list[int] = data.decode()
        except UnicodeDecodeError:
            piece = list(data)
        return compact({"id": token, "piece": piece})

    return written


async def _detokenize(call: Call[wire.DetokenizeRequest]) -> Response:
    model, tokens = call.model.model, call.body.tokens

    def answer() -> dict[str, str]:
        text = model.detokenize(tokens, special=True)
        return {"content": text, "prompt": text}

    return await json_answer(answer)


async def _apply_template(call: Call[ChatRequest]) -> Response:
    model = call.model.model
    messages, options = await question_of(call)
    prompt = await call.model.chat_prompt(messages, **options)
    return await json_answer(lambda: {"prompt": model.detokenize(prompt.token_ids, special=True)})


async def _properties(request: Request) -> Response:
    """The model, and how the server was started."""
    server = server_of(request)
    facts = server.known_facts()
    return JSONResponse(
        {
            "default_generation_settings": {
                "n_ctx": facts.n_ctx,
                "params": asdict(server.settings.sampling),
            },
            "total_slots": facts.n_parallel,
            "model_alias": server.model_name,
            "model_path": facts.path,
            "modalities": {"vision": facts.has_pictures, "audio": False, "video": False},
            "chat_template": facts.chat_template or "",
            "bos_token": facts.bos,
            "eos_token": facts.eos,
            "build_info": f"llama4-edge {__version__}",
            "is_sleeping": server.models.loaded is None,
        }
    )


async def _tokenizer(request: Request) -> Response:
    """What vLLM tells of a tokenizer."""
    facts = server_of(request).known_facts()
    return JSONResponse(
        {
            "bos_token": facts.bos,
            "eos_token": facts.eos,
            "chat_template": facts.chat_template or "",
        }
    )


async def _slots(request: Request) -> Response:
    """The sequences of the context."""
    server = server_of(request)
    n_ctx, loaded = server.known_facts().n_ctx, server.models.loaded
    sequences = [] if loaded is None else loaded.model.engine.sequences
    slots = [
        {"id": number, "n_ctx": n_ctx, "n_tokens": n_tokens, "is_processing": is_used}
        for number, (n_tokens, is_used) in enumerate(sequences)
    ]
    return JSONResponse(slots)


async def _metrics(request: Request) -> Response:
    """What the server has done and does, for Prometheus."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(), media_type=CONTENT_TYPE)


async def _embeddings(request: Request) -> Response:
    """Refuse, because this model has none."""
    raise ApiError(
        404,
        "This server gives no embeddings: the model was trained to answer, not to compare texts. "
        "Use a model for embeddings beside it.",
        code="not_supported",
    )


routes = [
    Endpoint(
        wire.TokenizeRequest,
        _tokenize,
        summary="The tokens of a text.",
        answer=wire.TokenizeAnswer,
        prompt_field="content",
        n_answers=no_answers,
    ).route("/tokenize"),
    Endpoint(
        wire.DetokenizeRequest,
        _detokenize,
        summary="The text of tokens.",
        answer=wire.DetokenizeAnswer,
        prompt_field="tokens",
        n_answers=no_answers,
    ).route("/detokenize"),
    Endpoint(
        ChatRequest,
        _apply_template,
        summary="What the model would read of some messages.",
        answer=wire.TemplateAnswer,
        prompt_field="messages",
        n_answers=no_answers,
    ).route("/apply-template"),
    Route("/props", _properties),
    Route("/tokenizer_info", _tokenizer),
    Route("/slots", _slots),
    Route("/metrics", _metrics),
    *(
        Route(path, _embeddings, methods=["POST"], include_in_schema=False)
        for path in ("/v1/embeddings", "/embeddings", "/embedding")
    ),
]

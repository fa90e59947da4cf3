"""Answers that keep to a schema, through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Pet(BaseModel):
    """What an answer has to be."""

    kind: Literal["cat", "dog"]
    is_young: bool


def test_an_answer_is_an_instance_of_a_pydantic_class(openai: OpenAI) -> None:
    answer = openai.chat.completions.parse(
        model="any",
        messages=[{"role": "user", "content": "Which pet?"}],
        response_format=Pet,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_plain_json_is_an_object(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": "Say something as JSON."}],
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "count",
                "schema": {
                    "type": "object",
                    "properties": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
                    "required": ["count"],
                    "additionalProperties": False,
                },
            },
        },
        temperature=0,
    )
    assert 1 <= json.loads(answer.choices[0].message.content or "")["count"] <= 9

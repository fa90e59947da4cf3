"""Pictures in messages: where they are found, what they are called in a prompt, what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.training import MODEL
from llama4_edge import Model
from llama4_edge.chat.pictures import picture_part, take_pictures
from llama4_edge.errors import ImageError, TemplateError
from llama4_edge.vision.images import image_tiles
from llama4_edge.vision.projector import row_names
from tests.fixtures import MakeGGUF

RED = np.full((336, 336, 3), (210, 30, 40), np.uint8)
BLUE = np.full((336, 700, 3), (30, 40, 210), np.uint8)


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(pixels: np.ndarray[Any, Any]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def asked(*parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]


def image(picture: object) -> dict[str, object]:
    return {"type": "image", "image": picture}


@pytest.fixture(scope="module")
def model(make_gguf: MakeGGUF) -> Iterator[Model]:
    with Model(make_gguf(MODEL), n_ctx=4096, n_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def text_model(tiny_path: Path) -> Iterator[Model]:
    with Model(tiny_path, n_ctx=512, n_threads=1) as loaded:
        yield loaded


def test_every_way_to_write_a_picture_is_the_same_prompt(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png(RED))
    encoded = base64.b64encode(png(RED)).decode()
    source = {"type": "base64", "media_type": "image/png", "data": encoded}
    parts: list[dict[str, Any]] = [
        image(RED),
        image(Image.fromarray(RED)),
        image(png(RED)),
        image(file),
        image(str(file)),
        {"type": "image", "path": str(file)},
        {"type": "image", "url": data_url(RED)},
        {"type": "image", "base64": encoded},
        {"type": "image", "source": source},
        {"type": "image_url", "image_url": {"url": data_url(RED)}},
        {"type": "image_url", "image_url": data_url(RED)},
        {"type": "input_image", "image_url": data_url(RED)},
    ]
    prompts = [model.chat_prompt(asked(part)) for part in parts]
    assert {tuple(prompt.positions) for prompt in prompts} == {tuple(prompts[0].positions)}
    assert sum(position < 0 for position in prompts[0].positions) == 144


def test_pictures_stand_in_order_and_are_named_by_their_pixels(model: Model) -> None:
    prompt = model.chat_prompt(asked(image(RED), image(BLUE), image(RED)))
    assert [picture.grid for picture in prompt.pictures] == [(1, 1), (1, 3), (1, 1)]
    names = [position for position in prompt.positions if position < 0]
    red, blue = (row_names(image_tiles(one).digest, b"", n) for one, n in ((RED, 1), (BLUE, 4)))
    assert (len(red), len(blue)) == (144, 4 * 144)
    assert names == [*red, *blue, *red]
    assert not set(red) & set(blue)
    ids = model.vocabulary.control_tokens
    assert prompt.token_ids.count(ids["<|patch|>"]) == len(names)
    assert prompt.token_ids.count(ids["<|tile_x_separator|>"]) == 2


def test_pictures_of_earlier_messages_keep_their_places(model: Model) -> None:
    first = asked(image(RED))
    talk = [*first, {"role": "assistant", "content": "Red."}, *asked(image(BLUE))]
    earlier, later = model.chat_prompt(first), model.chat_prompt(talk)
    n_common = len(earlier) - 4  # the header of the answer
    assert later.positions[:n_common] == earlier.positions[:n_common]
    assert len(later.pictures) == 2


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, "has no picture"),
        ({"type": "image_url"}, "has no URL"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "not a data URL"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "not a data URL"),
        ({"type": "image_url", "image_url": "http://localhost/a.png"}, "allow_download=True"),
        ({"type": "image", "image": "http://localhost/a.png"}, "allow_download"),
        ({"type": "image", "source": {"type": "url", "url": "/etc/passwd"}}, "not a data URL"),
        ({"type": "image", "image": b"no picture"}, "picture"),
        ({"type": "image", "image": 7}, "picture"),
    ],
)
def test_what_is_no_picture_is_refused(model: Model, part: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        model.chat_prompt(asked(part))


def test_a_template_without_a_place_for_pictures_is_refused(text_model: Model) -> None:
    with pytest.raises(TemplateError, match="0 places for 1 pictures"):
        text_model.chat_prompt(asked(image(RED)))


def test_the_name_of_a_control_token_in_a_message_is_no_picture(model: Model) -> None:
    text = {"type": "text", "text": "<|image|><|patch|>"}
    prompt = model.chat_prompt([{"role": "user", "content": [image(RED), text]}])
    assert len(prompt.pictures) == 1
    assert sum(position < 0 for position in prompt.positions) == 144
    patch = model.vocabulary.control_tokens["<|patch|>"]
    assert prompt.token_ids.count(patch) == 144


def test_text_alone_is_as_it_was() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [1, None]}]
    assert take_pictures(messages) == (messages, [])
    taken, _ = take_pictures([{"role": "user", "content": [{"type": "input_text", "text": "a"}]}])
    assert taken == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


def test_a_large_picture_is_taken_without_a_warning() -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(file, "PNG")  # more than Image.MAX_IMAGE_PIXELS
    url = picture_part(file.getvalue())["image_url"]["url"]  # a warning would be raised
    assert url.startswith("data:image/png;base64,")


def test_a_part_in_the_place_of_a_message_is_told_where_it_goes(model: Model) -> None:
    with pytest.raises(TemplateError, match=r"Parts are its content: \[\{"):
        model.chat_prompt([{"type": "text", "text": "Hello"}])

"""Adapters through the Python API: of a model, of a request, in sessions."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama4_edge import Adapter, AsyncModel, Model, ModelFileError, SessionError, SettingError
from llama4_edge import plan as find_plan
from llama4_edge.runtime.state import SequenceState
from tests.adapters import tiny_adapter, tiny_control_vector
from tests.gguf_maker import tiny_model
from tests.tiny_model import never_ending

TARGETS = [
    name
    for name, tensor in tiny_model().tensors.items()
    if tensor.ndim == 2 and name != "token_embd.weight"
]
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
OPENED: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters and a control vector."""
    directory = tmp_path_factory.mktemp("adapters")
    never_ending().write(directory / "model.gguf")
    tiny_adapter(TARGETS).write(directory / "poems.gguf")
    tiny_adapter(TARGETS, seed=7).write(directory / "law.gguf")
    tiny_control_vector().write(directory / "vector.gguf")
    return directory


@pytest.fixture(scope="module")
def model(files: Path) -> Iterator[Model]:
    adapters: list[Any] = [files / "poems.gguf", (files / "law.gguf", 0.5)]
    with Model(files / "model.gguf", adapters=adapters, n_parallel=3, **OPENED) as loaded:
        yield loaded


def test_a_request_has_the_model_s_adapters_or_its_own(model: Model, files: Path) -> None:
    assert model.adapters == (
        Adapter(str(files / "poems.gguf")),
        Adapter(str(files / "law.gguf"), 0.5),
    )
    usual = model.chat("Hello", **GREEDY).text
    assert model.chat("Hello", adapters=[("poems", 1.0), ("law", 0.5)], **GREEDY).text == usual
    texts = {
        model.chat("Hello", adapters=adapters, **GREEDY).text
        for adapters in ([], ["poems"], [("law", 2.0)], None)
    }
    assert len(texts) >= 3  # random weights often say the same
    with Model(files / "model.gguf", **OPENED) as bare:
        assert bare.chat("Hello", **GREEDY).text == model.chat("Hello", adapters=[], **GREEDY).text


def test_answers_at_the_same_time_are_what_they_are_alone(model: Model) -> None:
    wanted: list[Any] = [[], ["poems"], [("law", 2.0)], [("poems", -1.0)]]
    alone = [model.chat("Hello", adapters=one, **GREEDY).text for one in wanted]
    model.engine.clear()

    async def together() -> list[str]:
        shared = AsyncModel(model)
        answers = [shared.chat("Hello", adapters=one, **GREEDY) for one in wanted]
        return [one.text for one in await asyncio.gather(*answers)]

    assert asyncio.run(together()) == alone


def test_logits_and_scores_have_adapters(model: Model) -> None:
    tokens = model.tokenize("Hello there")
    whole = [model.logits(tokens, adapters=one) for one in (None, [], ["poems"])]
    assert not np.array_equal(whole[0], whole[1])
    scores = [model.score("Hello", adapters=one)[-1].logprob for one in (None, [], ["poems"])]
    assert len(set(scores)) == 3
    asked = asyncio.run(AsyncModel(model).score("Hello", adapters=["poems"]))
    assert asked[-1].logprob == pytest.approx(scores[2], abs=0.01)


def test_scales_are_assigned(model: Model) -> None:
    before = model.adapters
    try:
        expected = model.chat("Hello", adapters=["law"], **GREEDY).text
        model.adapters = ["law"]
        assert [one.scale for one in model.adapters] == [0.0, 1.0]
        assert model.chat("Hello", **GREEDY).text == expected
        with pytest.raises(SettingError, match="adapters names one that is not loaded"):
            model.adapters = ["other"]
    finally:
        model.adapters = before


def test_what_is_not_loaded_is_refused(model: Model) -> None:
    for call in (model.chat, model.generate):
        with pytest.raises(SettingError, match=r"found 'other', expected one of 0 \(poems\), 1"):
            call("Hello", adapters=["other"])


def test_a_model_refuses_what_is_no_adapter_of_it_before_it_loads(files: Path) -> None:
    for name, problem in (
        ("vector.gguf", "is not an adapter"),
        ("model.gguf", "is not an adapter"),
        ("missing.gguf", "does not exist"),
    ):
        with pytest.raises(ModelFileError, match=problem):
            Model(files / "model.gguf", adapters=[files / name])
    with pytest.raises(ModelFileError, match="is not a control vector"):
        Model(files / "model.gguf", control_vectors=[files / "poems.gguf"])
    with pytest.raises(SettingError, match="control_vector_layers goes beyond"):
        Model(
            files / "model.gguf",
            control_vectors=[files / "vector.gguf"],
            control_vector_layers=(1, 4),
        )


def test_a_plan_brings_its_adapters(files: Path) -> None:
    path = files / "model.gguf"
    planned = find_plan(path, n_ctx=256, adapters=[(files / "poems.gguf", 0.5)])
    with pytest.raises(SettingError, match=r"a plan decides .*, found adapters"):
        Model(path, plan=planned, adapters=[files / "law.gguf"])
    with Model(path, plan=planned, n_threads=1) as opened:
        assert [(one.name, one.scale) for one in opened.adapters] == [("poems", 0.5)]


# --- sessions


def saved(model: Model, path: Path, **options: Any) -> int:
    """Save what the model has read of an answer; how many tokens that are."""
    model.engine.clear()
    model.generate("the " * 40, max_tokens=1, **options)
    return len(model.save_session(path).tokens)


def opened(files: Path, *adapters: Any, **settings: Any) -> Model:
    return Model(files / "model.gguf", adapters=adapters, **OPENED, **settings)


def test_a_session_goes_on_with_the_same_adapters_wherever_they_lie(
    files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "talk.l4s"
    with opened(files, (files / "poems.gguf", 0.5)) as model:
        count = saved(model, path)
    moved = tmp_path / "moved.gguf"
    shutil.copy(files / "poems.gguf", moved)
    with opened(files, (files / "law.gguf", 0.0), (moved, 0.5)) as model:
        assert len(model.load_session(path).tokens) == count
        assert model.generate("the " * 40, **GREEDY).reused_tokens > 30
        assert model.generate("the " * 40, adapters=[], **GREEDY).reused_tokens == 0


def test_a_session_is_refused_with_other_adapters(files: Path, tmp_path: Path) -> None:
    path, bare = tmp_path / "talk.l4s", tmp_path / "bare.l4s"
    with opened(files, (files / "poems.gguf", 0.5)) as model:
        saved(model, path)
        with pytest.raises(SessionError, match="other adapters"):
            saved(model, bare, adapters=[])
            model.load_session(bare)
    for adapters, expected in (
        ((), "none"),
        (((files / "poems.gguf", 0.25),), "poems.gguf=0.25"),
        (((files / "law.gguf", 0.5),), "law.gguf=0.5"),
    ):
        with (
            opened(files, *adapters) as model,
            pytest.raises(SessionError, match=f"found poems.gguf=0.5, expected {expected}"),
        ):
            model.load_session(path)
    with opened(files) as model:
        assert model.load_session(bare).tokens


def test_a_session_knows_its_control_vector(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.l4s"
    with opened(files, control_vectors=[files / "vector.gguf"]) as model:
        saved(model, path)
        assert model.load_session(path).tokens
    for settings in (
        {},
        {"control_vectors": [(files / "vector.gguf", 0.5)]},
        {"control_vectors": [files / "vector.gguf"], "control_vector_layers": (1, 2)},
    ):
        with (
            opened(files, **settings) as model,
            pytest.raises(SessionError, match="another control vector"),
        ):
            model.load_session(path)


def test_states_without_adapters_are_as_before(files: Path) -> None:
    with opened(files) as model:
        model.generate("the " * 40, max_tokens=1)
        state = model.engine.state_of(model.engine.last_prompt)
    assert isinstance(state, SequenceState)
    assert state.adapters == ()

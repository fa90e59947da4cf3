"""The plan as a value: it comes back from JSON as it was, and what is not a plan is one error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import settings

from llama4_edge.errors import OutputError, SettingError
from llama4_edge.planner import Alternative, DevicePlan, Images, Plan, plan
from llama4_edge.planner.from_disk import DiskReads
from llama4_edge.planner.layout import DeviceLoad
from llama4_edge.planner.machine import MachineDevice
from llama4_edge.quant.roles import ROLES
from llama4_edge.runtime.bindings.memory import DeviceMemory
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings, LoadMode
from tests.fuzzing import damaged_json, efforts, fuzz

GIB = 2**30


@pytest.fixture(scope="module")
def scout() -> Plan:
    return plan("scout", gpus=["rtx4090 x2"], ram=64 * GIB, n_parallel=2, n_ubatch=256)


def random_plan(seed: int) -> Plan:
    """A plan with every field set, or left out where it may be."""
    rng = random.Random(seed)

    def nbytes() -> int:
        return rng.randrange(2**45)

    def maybe(value: Any) -> Any:
        return rng.choice([value, None])

    def device(name: str) -> DevicePlan:
        return DevicePlan(
            device=MachineDevice(
                name=name,
                description='Wärme & "Rest"',
                type=rng.choice(["gpu", "cpu"]),
                total_bytes=maybe(nbytes()),
                free_bytes=maybe(nbytes()),
                bandwidth=maybe(nbytes()),
                bandwidth_source=maybe("measured"),
                kept_free_bytes=nbytes(),
                endpoint=maybe("10.0.0.7:50052"),
                private_bytes=maybe(nbytes()),
            ),
            load=DeviceLoad(
                layers=tuple(range(rng.randrange(5))),
                weights=tuple((role, nbytes()) for role in rng.sample(ROLES, 3)),
                kv_full_bytes=nbytes(),
                kv_chunked_bytes=nbytes(),
                read_bytes=nbytes(),
                kv_read_bytes=nbytes(),
            ),
            memory=DeviceMemory(name, nbytes(), nbytes(), nbytes()),
            output_bytes=nbytes(),
            taken_bytes=nbytes(),
        )

    count = rng.randrange(4)
    names = tuple(f"GPU {number}" for number in range(count))
    return Plan(
        model="Ein Modell",
        path="/a path/with spaces.gguf",
        recipe=maybe("int4"),
        n_layer=rng.randrange(4, 100),
        n_ctx_train=rng.randrange(1, 2**24),
        settings=EngineSettings(
            n_ctx=rng.randrange(1, 2**24),
            n_batch=rng.randrange(1, 4096),
            n_threads=maybe(3),
            use_extra_bufts=rng.random() < 0.5,
            load_mode=rng.choice(get_args(LoadMode)),
            n_expert_used=rng.choice([None, 1, 2]),
            kv_type=rng.choice(["f16", "q8_0", ("q8_0", "q4_0")]),
            placement=Placement(
                n_gpu_layers=rng.randrange(-1, 50),
                devices=maybe(names),
                tensor_split=(1.5, 0.1)[:count] if count == 2 else (),
                overrides=((r"blk\.(1|2)\.ffn_up_exps", "CPU"),)[: rng.randrange(2)],
                offload_kqv=rng.random() < 0.5,
            ),
            workers=("10.0.0.7:50052",)[: rng.randrange(2)],
        ),
        described=rng.random() < 0.5,
        devices=tuple(device(name) for name in (*names, "CPU")),
        disk=maybe(DiskReads(nbytes(), rng.choice([None, nbytes()]), "measured now")),
        images=maybe(
            Images(
                nbytes(), nbytes(), nbytes(), 3, "a", maybe("CPU"), maybe((3, 4)), 1, 2, maybe(0.5)
            )
        ),
        why=("because",)[: rng.randrange(2)],
        notes=("a", "b")[: rng.randrange(3)],
        alternatives=(Alternative("131,072 tokens", "+1 GiB", True),)[: rng.randrange(2)],
    )


@pytest.mark.parametrize("seed", range(40))
def test_any_plan_comes_back_from_json_and_from_its_file(seed: int, tmp_path: Path) -> None:
    written = random_plan(seed)
    assert Plan.from_dict(written.as_dict()) == written
    assert Plan.from_dict(json.loads(json.dumps(written.as_dict()))) == written
    written.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert hash(Plan.load(tmp_path / "plan.json")) == hash(written)


def test_a_plan_that_was_found_comes_back_from_its_file(scout: Plan, tmp_path: Path) -> None:
    scout.save(tmp_path / "plan.json")
    assert Plan.load(str(tmp_path / "plan.json")) == scout


def test_the_json_is_flat_and_names_the_settings_as_python_does(scout: Plan) -> None:
    record = scout.as_dict()
    assert record["format"] == 5
    settings = asdict(scout.settings)
    assert {name: record[name] for name in settings} == json.loads(json.dumps(settings))
    assert {"n_ctx_train", "n_layer", "alternatives"} <= record.keys()
    assert not {"context", "trained_context", "ubatch", "choices", "settings"} & record.keys()
    gpu, *_ = record["devices"]
    assert gpu["weights_bytes"] == sum(gpu["weights"].values()) + gpu["repacking_bytes"]
    assert gpu["kv_bytes"] == gpu["kv_full_bytes"] + gpu["kv_chunked_bytes"]
    assert gpu["used_bytes"] == gpu["weights_bytes"] + gpu["kv_bytes"] + gpu["compute_bytes"]
    assert gpu["left_bytes"] == gpu["free_bytes"] - gpu["kept_free_bytes"] - gpu["used_bytes"]
    assert not {"device", "load", "memory"} & gpu.keys()


def test_a_plan_of_format_1_is_refused_with_what_to_do(scout: Plan, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(scout.as_dict() | {"format": 1}))
    with pytest.raises(SettingError) as caught:
        Plan.load(path)
    assert str(caught.value) == (
        f"{path} is a plan of another version, found format 1, expected format 5. "
        "Make it again: `llama4 plan MODEL --json`, or `plan(…).save(…)`."
    )


def _remove(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("format"), "is not a plan, found no format"),
        (_remove("model"), "has no model, expected a string. Make the plan again."),
        (_remove("n_ubatch"), "has no n_ubatch"),
        (lambda record: record["placement"].pop("overrides"), ": placement has no overrides"),
        (lambda record: record["devices"][0].pop("read_bytes"), ": devices[0] has no read_bytes"),
        (lambda record: record.update(n_layer="48"), "has an invalid n_layer, found '48'"),
        (lambda record: record.update(n_layer=True), "has an invalid n_layer, found True"),
        (lambda record: record.update(described=None), "has no described, expected true or false"),
        (
            lambda record: record.update(use_extra_bufts=1),
            "has an invalid use_extra_bufts",
        ),
        (lambda record: record.update(n_ctx=0), "is damaged: n_ctx is outside its range"),
        (lambda record: record.update(n_ctx=[]), "is damaged: n_ctx is outside its range"),
        (lambda record: record.update(kv_type={}), "is damaged: kv_type is unknown"),
        (lambda record: record.update(workers=7), "is damaged: "),
        (
            lambda record: record.update(placement=[]),
            "has an invalid placement, found a list of 0, expected an object",
        ),
        (lambda record: record["placement"].update(tensor_split=None), "is damaged: "),
        (lambda record: record["placement"].update(overrides=[[1, 2]]), "is damaged: "),
        (lambda record: record["placement"].update(overrides=["ab", "x"]), "is damaged: "),
        (
            lambda record: record.update(devices={}),
            "has an invalid devices",
        ),
        (lambda record: record.update(devices=[]), "has an invalid devices, found a list of 0"),
        (
            lambda record: record.update(devices=[1]),
            "has an invalid devices",
        ),
        (lambda record: record["devices"][0].update(weights=[]), "has an invalid weights"),
        (
            lambda record: record["devices"][0]["weights"].update(expert=0.5),
            ": weights has an invalid expert, found 0.5",
        ),
        (
            lambda record: record.update(notes=["a", 1]),
            "has an invalid notes",
        ),
        (
            lambda record: record.update(images=3),
            "has an invalid images, found 3",
        ),
        (lambda record: record.update(alternatives=[{}]), ": alternatives[0] has no what"),
    ],
)
def test_a_damaged_plan_is_one_error_that_names_the_file_and_the_entry(
    scout: Plan, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "plan.json"
    record = scout.as_dict()
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(SettingError) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is not JSON, found Expecting value"),
        (b'{"format": 2', " is not JSON, found Expecting"),
        (b"\xff\xfe", " is not UTF-8 text, found byte 0xff at 0"),
        (b"[1, 2]", " is damaged, found a list of 2, expected a JSON object"),
        (b"null", " is damaged, found None, expected a JSON object"),
    ],
)
def test_a_file_that_holds_no_plan_is_one_error(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(SettingError, match=rf"x\.json{message}"):
        Plan.load(tmp_path / "x.json")


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        Plan.load(tmp_path / "absent.json")
    assert str(caught.value) == (f"{tmp_path}/absent.json does not exist")
    with pytest.raises(SettingError, match="cannot be read, found Is a directory"):
        Plan.load(tmp_path)
    with pytest.raises(SettingError, match="cannot be read, found Not a directory"):
        (tmp_path / "file").touch()
        Plan.load(tmp_path / "file" / "plan.json")


def test_a_file_without_permission_is_one_error(
    scout: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    scout.save(tmp_path / "plan.json")
    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(SettingError, match=r"json cannot be read, found Permission"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(OutputError, match="the plan cannot be written, found Permission"):
        scout.save(tmp_path / "new.json")
    with pytest.raises(OutputError, match=r"json exists, and is not a plan, found Permission"):
        scout.save(tmp_path / "plan.json")


def test_nothing_but_a_plan_is_written_over(scout: Plan, tmp_path: Path) -> None:
    others = {"model.gguf": b"GGUF\3\0\0\0", "notes.json": b'{"format": 5}', "empty": b""}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        for path in (tmp_path / name, link):
            with pytest.raises(OutputError, match=r"exists, and is not a plan.*another name"):
                scout.save(path)
        assert (tmp_path / name).read_bytes() == data
    old = tmp_path / "old.json"
    old.write_text(json.dumps(scout.as_dict() | {"format": 4}))
    scout.save(old)
    assert Plan.load(old) == scout


def test_saving_leaves_what_was_there_where_it_fails(
    scout: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="cannot be written, found No such file or directory"):
        scout.save(tmp_path / "absent" / "plan.json")
    with pytest.raises(OutputError, match="cannot be written"):
        scout.save(tmp_path)
    path = tmp_path / "plan.json"
    scout.save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="cannot be written, found No space left on device"):
        replace(scout, model="another").save(path)
    assert Plan.load(path) == scout
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@efforts
def test_no_plan_is_a_traceback(scout: Plan, tmp_path: Path, effort: settings) -> None:
    path = tmp_path / "plan.json"

    def check(record: Any) -> None:
        try:
            read = Plan.from_dict(record)
        except SettingError as error:
            assert "the plan" in str(error) or "worker" in str(error)
        else:
            # Whatever is asked of a plan.
            assert str(read) and Plan.from_dict(read.as_dict()) == read
        with suppress(ValueError):  # JSON has no integers of thousands of digits
            path.write_text(json.dumps(record))
            with suppress(SettingError):
                Plan.load(path)

    fuzz(check, damaged_json(scout.as_dict()), effort)

"""The plan as a value: what goes where, in bytes, whether it fits, and how fast it can be.

Promises that a plan can be printed, saved as JSON and loaded back equal. Computes nothing but sums
and quotients of what it was given, and does not know how it was found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, SettingError
from ..runtime.bindings.memory import DeviceMemory
from ..runtime.placement import Placement
from ..runtime.settings import EngineSettings
from ..system.files import write_atomically
from ..units import bytes_text
from .layout import DeviceLoad
from .machine import MachineDevice
from .record import as_json, entries, entry, texts

FORMAT = 2
"""The version of a plan's JSON."""


@dataclass(frozen=True)
class DevicePlan:
    """What one device is, what it holds of the model, and what llama.cpp allocates on it.

    ``output_bytes`` are the logits that a context returns, which lie in main memory.
    """

    device: MachineDevice
    load: DeviceLoad
    memory: DeviceMemory
    output_bytes: int = 0

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name

    @property
    def repacking_bytes(self) -> int:
        """Bytes that weights take beyond those in the file: repacked for the CPU, or padded."""
        return self.memory.weights - self.load.weights_bytes

    @property
    def used_bytes(self) -> int:
        """All that the plan puts here."""
        return self.memory.total + self.output_bytes

    @property
    def left_bytes(self) -> int:
        """What is left, beside what is kept free; negative where it does not fit."""
        free = self.device.free_bytes or 0
        return free - self.device.kept_free_bytes - self.used_bytes

    @property
    def idle(self) -> bool:
        """Whether nothing is put here."""
        return not self.used_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON: one flat object. ``weights`` and ``repacking_bytes`` add up to
        ``weights_bytes``."""
        return {
            **asdict(self.device),
            **asdict(self.load),
            "layers": list(self.load.layers),
            "weights": dict(self.load.weights),
            "repacking_bytes": self.repacking_bytes,
            "weights_bytes": self.memory.weights,
            "kv_bytes": self.memory.kv,
            "compute_bytes": self.memory.compute,
            "output_bytes": self.output_bytes,
            "used_bytes": self.used_bytes,
            "left_bytes": self.left_bytes,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DevicePlan:
        """What `as_dict` wrote.

        Raises:
            SettingError: an entry is missing, or of another type.
        """

        def count(name: str) -> int:
            return int(entry(record, name, int))

        name = str(entry(record, "name", str))
        return cls(
            device=MachineDevice(
                name=name,
                description=entry(record, "description", str),
                type=entry(record, "type", str),
                total_bytes=entry(record, "total_bytes", int, None),
                free_bytes=entry(record, "free_bytes", int, None),
                bandwidth=entry(record, "bandwidth", int, None),
                bandwidth_source=entry(record, "bandwidth_source", str, None),
                kept_free_bytes=count("kept_free_bytes"),
                endpoint=entry(record, "endpoint", str, None),
            ),
            load=DeviceLoad(
                layers=tuple(entries(record, "layers", int)),
                weights=tuple(
                    (role, int(entry(record["weights"], role, int)))
                    for role in entry(record, "weights", dict)
                ),
                kv_full_bytes=count("kv_full_bytes"),
                kv_chunked_bytes=count("kv_chunked_bytes"),
                read_bytes=count("read_bytes"),
                kv_read_bytes=count("kv_read_bytes"),
            ),
            memory=DeviceMemory(
                name, count("weights_bytes"), count("kv_bytes"), count("compute_bytes")
            ),
            output_bytes=count("output_bytes"),
        )


@dataclass(frozen=True)
class Alternative:
    """Another choice, ``what`` (``131,072 tokens``); ``effect`` is a clause that says what it
    costs or brings."""

    what: str
    effect: str
    fits: bool


@dataclass(frozen=True)
class Images:
    """What pictures would take beside the text model, in bytes, none of which is on a device.

    Weights alone, in bf16, as llama.cpp's tools write them into a file of their own (mmproj): this
    version converts and loads none. ``projector_bytes`` counts the adapter behind the tower too.
    """

    vision_tower_bytes: int
    projector_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Both."""
        return self.vision_tower_bytes + self.projector_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON: both, their sum, and that they are not loaded."""
        return asdict(self) | {"weights_bytes": self.weights_bytes, "loaded": False}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Images:
        """What `as_dict` wrote.

        Raises:
            SettingError: an entry is missing, or of another type.
        """
        return cls(*(entry(record, field.name, int) for field in fields(cls)))


@dataclass(frozen=True)
class Plan:
    """Where a model goes, and what comes of it. ``str(plan)`` is one line.

    ``settings`` are what an engine is made with. ``devices`` are the GPUs and last main memory.
    ``why`` says how the placement was chosen, ``notes`` what else is worth knowing,
    ``alternatives`` what other settings would cost. ``described`` is whether the GPUs are not those
    of this machine. ``images`` are weights for pictures, which no device holds; None for a model
    without, or a GGUF, which does not say.
    """

    model: str
    path: str
    recipe: str | None
    n_layer: int
    n_ctx_train: int
    settings: EngineSettings
    described: bool
    devices: tuple[DevicePlan, ...]
    images: Images | None = None
    why: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every device has room for what is put there."""
        return all(device.left_bytes >= 0 for device in self.devices)

    @property
    def from_disk_bytes(self) -> int:
        """Bytes of mapped weights for which main memory is short, and which would be read from the
        file again and again; 0 where it is not."""
        return max(-self.host.left_bytes, 0) if self.settings.mmap else 0

    @property
    def host(self) -> DevicePlan:
        """Main memory."""
        return self.devices[-1]

    @property
    def gpus(self) -> tuple[DevicePlan, ...]:
        """All other devices."""
        return self.devices[:-1]

    @property
    def bytes_per_token_read(self) -> int:
        """Bytes of weights that decoding one token reads, on all devices."""
        return sum(device.load.read_bytes for device in self.devices)

    @property
    def kv_bytes_per_token_read(self) -> int:
        """Bytes of the cache that decoding one token reads when the context is full."""
        return sum(device.load.kv_read_bytes for device in self.devices)

    @property
    def experts_on_cpu(self) -> int:
        """Bytes of experts in main memory beside GPUs; 0 where there is no GPU in use."""
        if all(gpu.idle for gpu in self.gpus):
            return 0
        return self.host.load.bytes_of("expert")

    @property
    def estimated_decode_tokens_per_second(self) -> float | None:
        """What memory allows at the beginning of a context; None where a bandwidth is unknown."""
        return self._rate(with_cache=False)

    @property
    def estimated_decode_tokens_per_second_full(self) -> float | None:
        """What memory allows when the context is full; None where a bandwidth is unknown."""
        return self._rate(with_cache=True)

    def _rate(self, *, with_cache: bool) -> float | None:
        seconds = 0.0
        for device in self.devices:
            read = device.load.read_bytes + (device.load.kv_read_bytes if with_cache else 0)
            if not read:
                continue
            bandwidth = device.device.bandwidth
            if not bandwidth or (device is self.host and device.left_bytes < 0):
                return None
            seconds += read / bandwidth
        return 1.0 / seconds if seconds else None

    def __str__(self) -> str:
        parts = [
            f"{device.name} {bytes_text(device.used_bytes, digits=2)}"
            for device in self.devices
            if not device.idle
        ]
        fits = "" if self.fits else ", which does not fit"
        settings = self.settings
        return (
            f"{self.model}, {settings.n_ctx:,} tokens of {settings.kv_type}: "
            f"{', '.join(parts)}{fits}"
        )

    def with_notes(self, *notes: str) -> Plan:
        """The same plan with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    # --- JSON

    def as_dict(self) -> dict[str, Any]:
        """For JSON: one flat object, the settings by their names; `from_dict` reads it back."""
        record = {
            "format": FORMAT,
            "fits": self.fits,
            "model": self.model,
            "path": self.path,
            "recipe": self.recipe,
            "n_layer": self.n_layer,
            "n_ctx_train": self.n_ctx_train,
            **asdict(self.settings),
            "described": self.described,
            "devices": [device.as_dict() for device in self.devices],
            "images": self.images.as_dict() if self.images else None,
            "why": self.why,
            "notes": self.notes,
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "experts_on_cpu": self.experts_on_cpu,
            "from_disk_bytes": self.from_disk_bytes,
            "bytes_per_token_read": self.bytes_per_token_read,
            "kv_bytes_per_token_read": self.kv_bytes_per_token_read,
            "estimated_decode_tokens_per_second": self.estimated_decode_tokens_per_second,
            "estimated_decode_tokens_per_second_full": self.estimated_decode_tokens_per_second_full,
            "bandwidths": {
                device.name: {
                    "bytes_per_second": device.device.bandwidth,
                    "source": device.device.bandwidth_source,
                }
                for device in self.devices
            },
        }
        return dict(as_json(record))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Plan:
        """What `as_dict` wrote.

        Raises:
            SettingError: it is not a plan, is damaged, or is of another version.
        """
        if "format" not in record:
            raise SettingError(
                "not a plan",
                found="no format",
                expected=f"what `Plan.save` or `llama4 plan --json` writes, format {FORMAT}",
            )
        if record["format"] != FORMAT:
            raise SettingError(
                "a plan of another version",
                found=f"format {record['format']!r}",
                expected=f"format {FORMAT}",
                hint="Make it again: `llama4 plan MODEL --json`, or `plan(…).save(…)`.",
            )
        images = entry(record, "images", dict, None)
        devices = tuple(map(DevicePlan.from_dict, entries(record, "devices", dict)))
        if not devices:
            raise SettingError("the plan has no devices", expected="at least main memory")
        return cls(
            model=entry(record, "model", str),
            path=entry(record, "path", str),
            recipe=entry(record, "recipe", str, None),
            n_layer=entry(record, "n_layer", int),
            n_ctx_train=entry(record, "n_ctx_train", int),
            settings=_settings(record),
            described=entry(record, "described", bool),
            devices=devices,
            images=Images.from_dict(images) if images is not None else None,
            why=texts(record, "why"),
            notes=texts(record, "notes"),
            alternatives=tuple(
                Alternative(
                    entry(alternative, "what", str),
                    entry(alternative, "effect", str),
                    entry(alternative, "fits", bool),
                )
                for alternative in entries(record, "alternatives", dict)
            ),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, in one step: the file is whole or as it was before.

        Raises:
            OutputError: the file cannot be written.
        """
        text = json.dumps(self.as_dict(), ensure_ascii=False, indent=2)
        try:
            write_atomically(path, text + "\n")
        except OSError as error:
            raise OutputError(
                f"{os.fspath(path)}: the plan cannot be written",
                found=error.strerror or error,
                hint="Give a file in a directory that exists and that you may write to.",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read what `save` wrote.

        Raises:
            SettingError: the file cannot be read, or holds no plan of this version.
        """
        name = os.fspath(path)
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(
                f"{name}: the plan cannot be read",
                found=error.strerror or error,
                hint="Give a file that `Plan.save` or `llama4 plan --json` wrote.",
            ) from error
        except ValueError as error:  # not UTF-8 either
            raise SettingError(
                f"{name}: not a plan", found=error, expected="the JSON of a plan"
            ) from error
        if not isinstance(record, dict):
            raise SettingError(
                f"{name}: not a plan",
                found=f"JSON that is a {type(record).__name__}",
                expected="a JSON object",
            )
        try:
            return cls.from_dict(record)
        except SettingError as error:
            raise SettingError(
                f"{name}: {error.problem}",
                found=error.found,
                expected=error.expected,
                hint=error.hint,
            ) from error


def _settings(record: Mapping[str, Any]) -> EngineSettings:
    """The settings, whose entries lie among the plan's own."""
    try:
        placement = Placement(**_values(Placement, entry(record, "placement", dict)))
        return EngineSettings(**_values(EngineSettings, record) | {"placement": placement})
    except (TypeError, ValueError, AttributeError) as error:
        problem = error.problem if isinstance(error, SettingError) else f"a setting: {error}"
        raise SettingError(f"the plan is damaged: {problem}") from error


def _values(kind: type[EngineSettings | Placement], record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries for the fields of a value; numbers and lists are checked where it is made."""
    return {
        field.name: entry(record, field.name, *[bool] * isinstance(field.default, bool))
        for field in fields(kind)
    }

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
from ..ranges import as_path
from ..runtime.bindings.memory import DeviceMemory
from ..runtime.main_memory import usual_cache
from ..runtime.placement import Placement
from ..runtime.settings import EngineSettings
from ..system.files import is_file, write_atomically
from ..units import bytes_text
from ..untrusted import Reader, Record
from .from_disk import DiskReads
from .layout import DeviceLoad
from .machine import MachineDevice
from .measured import MeasuredShare, measured_share
from .pictures import Images

FORMAT = 5
"""The version of a plan's JSON."""

_READER = Reader(SettingError, limit=2**24, hint="Make the plan again.")


@dataclass(frozen=True)
class DevicePlan:
    """What one device is, what it holds of the model, and what llama.cpp allocates on it.

    ``output_bytes`` are the logits that a context returns, which lie in main memory.
    ``taken_bytes`` are those that GPUs which share main memory take of it.
    """

    device: MachineDevice
    load: DeviceLoad
    memory: DeviceMemory
    output_bytes: int = 0
    taken_bytes: int = 0

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
        return free - self.device.kept_free_bytes - self.used_bytes - self.taken_bytes

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
            "adapters_bytes": self.memory.adapters,
            "output_bytes": self.output_bytes,
            "used_bytes": self.used_bytes,
            "taken_bytes": self.taken_bytes,
            "left_bytes": self.left_bytes,
        }

    @classmethod
    def from_record(cls, record: Record) -> DevicePlan:
        """What `as_dict` wrote.

        Raises:
            SettingError: an entry is missing, or of another type.
        """
        name = record.text("name")
        weights = record.record("weights")
        return cls(
            device=MachineDevice(
                name=name,
                description=record.text("description"),
                type=record.text("type"),
                total_bytes=_maybe_integer(record, "total_bytes"),
                free_bytes=_maybe_integer(record, "free_bytes"),
                bandwidth=_maybe_integer(record, "bandwidth"),
                bandwidth_source=_maybe_text(record, "bandwidth_source"),
                kept_free_bytes=record.integer("kept_free_bytes"),
                endpoint=_maybe_text(record, "endpoint"),
                private_bytes=_maybe_integer(record, "private_bytes"),
            ),
            load=DeviceLoad(
                layers=_layers(record),
                weights=tuple((role, weights.integer(role)) for role in weights),
                kv_full_bytes=record.integer("kv_full_bytes"),
                kv_chunked_bytes=record.integer("kv_chunked_bytes"),
                read_bytes=record.integer("read_bytes"),
                kv_read_bytes=record.integer("kv_read_bytes"),
            ),
            memory=DeviceMemory(
                name,
                record.integer("weights_bytes"),
                record.integer("kv_bytes"),
                record.integer("compute_bytes"),
                record.integer("adapters_bytes"),
            ),
            output_bytes=record.integer("output_bytes"),
            taken_bytes=record.integer("taken_bytes"),
        )


@dataclass(frozen=True)
class Alternative:
    """Another choice, ``what`` (``131,072 tokens``); ``effect`` is a clause that says what it
    costs or brings."""

    what: str
    effect: str
    fits: bool


@dataclass(frozen=True)
class Plan:
    """Where a model goes, and what comes of it. ``str(plan)`` is one line.

    ``settings`` are what an engine is made with. ``devices`` are the GPUs and last main memory.
    ``why`` says how the placement was chosen, ``notes`` what else is worth knowing,
    ``alternatives`` what other settings would cost. ``described`` is whether the GPUs are not those
    of this machine. ``disk`` is what decoding reads from the file, None where main memory has room
    for all weights, or not even for the context. ``images`` is what pictures take, None for a model
    without a vision tower, or a GGUF without one beside it.
    """

    model: str
    path: str
    recipe: str | None
    n_layer: int
    n_ctx_train: int
    settings: EngineSettings
    described: bool
    devices: tuple[DevicePlan, ...]
    disk: DiskReads | None = None
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
        return max(-self.host.left_bytes, 0) if self.settings.mapped else 0

    @property
    def cache_ram_bytes(self) -> int:
        """Bytes of main memory that what finished sequences had read may take, of what is left
        beside all else."""
        left, wanted = max(self.host.left_bytes, 0), self.settings.cache_ram
        return usual_cache(left) if wanted is None else min(wanted, left)

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
        """What memory allows at the beginning of a context, with the disk's part estimated; None
        where a bandwidth is unknown."""
        return self._rate(with_cache=False)

    @property
    def estimated_decode_tokens_per_second_full(self) -> float | None:
        """What memory allows when the context is full, with the disk's part estimated; None where
        a bandwidth is unknown."""
        return self._rate(with_cache=True)

    @property
    def measured_share(self) -> MeasuredShare | None:
        """What share of such estimates was measured on a machine with GPUs like those in use; None
        where nothing was."""
        return measured_share([gpu.device for gpu in self.gpus if not gpu.idle])

    def _rate(self, *, with_cache: bool) -> float | None:
        seconds = 0.0
        if self.host.left_bytes < 0:
            if self.disk is None or self.disk.seconds is None:
                return None
            seconds = self.disk.seconds
        for device in self.devices:
            read = device.load.read_bytes + (device.load.kv_read_bytes if with_cache else 0)
            if not read:
                continue
            bandwidth = device.device.bandwidth
            if not bandwidth:
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
            f"{self.model}, {settings.n_ctx:,} tokens of {settings.kv_text}: "
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
            "disk": asdict(self.disk) if self.disk else None,
            "images": self.images.as_dict() if self.images else None,
            "why": self.why,
            "notes": self.notes,
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "experts_on_cpu": self.experts_on_cpu,
            "from_disk_bytes": self.from_disk_bytes,
            "cache_ram_bytes": self.cache_ram_bytes,
            "bytes_per_token_read": self.bytes_per_token_read,
            "kv_bytes_per_token_read": self.kv_bytes_per_token_read,
            "estimated_decode_tokens_per_second": self.estimated_decode_tokens_per_second,
            "estimated_decode_tokens_per_second_full": self.estimated_decode_tokens_per_second_full,
            "measured_share": asdict(share) if (share := self.measured_share) else None,
            "bandwidths": {
                device.name: {
                    "bytes_per_second": device.device.bandwidth,
                    "source": device.device.bandwidth_source,
                }
                for device in self.devices
            },
        }
        return dict(_as_json(record))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Plan:
        """What `as_dict` wrote.

        Raises:
            SettingError: it is not a plan, is damaged, or is of another version.
        """
        return cls._from_record(_READER.as_record(record, "the plan"))

    @classmethod
    def _from_record(cls, record: Record) -> Plan:
        if "format" not in record:
            raise SettingError(
                f"{record.name} is not a plan",
                found="no format",
                expected=f"what `Plan.save` or `llama4 plan --json` writes, format {FORMAT}",
            )
        if record.integer("format") != FORMAT:
            raise SettingError(
                f"{record.name} is a plan of another version",
                found=f"format {record['format']}",
                expected=f"format {FORMAT}",
                hint="Make it again: `llama4 plan MODEL --json`, or `plan(…).save(…)`.",
            )
        devices = tuple(map(DevicePlan.from_record, record.records("devices")))
        if not devices:
            raise record.fault("devices", "at least main memory")
        with_disk = record.get("disk") is not None
        with_images = record.get("images") is not None
        return cls(
            model=record.text("model"),
            path=record.text("path"),
            recipe=_maybe_text(record, "recipe"),
            n_layer=record.integer("n_layer"),
            n_ctx_train=record.integer("n_ctx_train"),
            settings=_settings(record),
            described=record.boolean("described"),
            devices=devices,
            disk=DiskReads.from_record(record.record("disk")) if with_disk else None,
            images=Images.from_record(record.record("images")) if with_images else None,
            why=record.texts("why"),
            notes=record.texts("notes"),
            alternatives=tuple(
                Alternative(
                    alternative.text("what"),
                    alternative.text("effect"),
                    alternative.boolean("fits"),
                )
                for alternative in record.records("alternatives")
            ),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, in one step: the file is whole or as it was before.

        Raises:
            OutputError: the file cannot be written, or is there and is not a plan.
        """
        path = as_path("path", path)
        _check_target(path)
        text = json.dumps(self.as_dict(), ensure_ascii=False, indent=2)
        try:
            write_atomically(path, text + "\n")
        except (OSError, ValueError) as error:  # the latter is about the name
            raise OutputError(
                f"{path}: the plan cannot be written",
                found=getattr(error, "strerror", None) or str(error),
                hint="Give a file in a directory that exists and that you may write to.",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read what `save` wrote.

        Raises:
            SettingError: the file cannot be read, or holds no plan of this version.
        """
        return cls._from_record(_READER.record(as_path("path", path)))


def _check_target(path: str) -> None:
    """Refuse to write over something else than a plan, of whatever version."""
    if not is_file(Path(path)):
        return
    found = None
    try:
        if {"format", "devices"} <= _READER.record(path).keys():
            return
    except SettingError as error:
        found = error.found
    raise OutputError(
        f"{path} exists, and is not a plan", found=found, hint="Give another name, or move it away."
    )


def _settings(record: Record) -> EngineSettings:
    """The settings, whose entries lie among the plan's own."""
    try:
        placement = Placement(**_values(Placement, record.record("placement")))
        values = _values(EngineSettings, record) | {"placement": placement}
        for name in ("adapters", "control_vectors"):
            values[name] = [(one.text("path"), one.number("scale")) for one in record.records(name)]
        return EngineSettings(**values)
    except SettingError as error:
        if error.problem.startswith(record.name):
            raise
        raise SettingError(
            f"{record.name} is damaged: {error.problem}",
            found=error.found,
            expected=error.expected,
            hint=_READER.hint,
        ) from error


def _values(kind: type[EngineSettings | Placement], record: Record) -> dict[str, Any]:
    """The entries for the fields of a value; numbers and lists are checked where it is made."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if isinstance(field.default, bool):
            values[field.name] = record.boolean(field.name)
        elif field.name in record:
            values[field.name] = record[field.name]
        else:
            raise record.fault(field.name, "one")
    return values


def _maybe_integer(record: Record, key: str) -> int | None:
    return None if record.get(key) is None else record.integer(key)


def _maybe_text(record: Record, key: str) -> str | None:
    return None if record.get(key) is None else record.text(key)


def _layers(record: Record) -> tuple[int, ...]:
    layers = record.elements("layers")
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise record.fault("layers", "a list of whole numbers")
    return tuple(layers)


def _as_json(value: Any) -> Any:
    """The value with tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {name: _as_json(item) for name, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value

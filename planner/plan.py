"""The plan as a value: what goes where, in bytes, whether it fits, and how fast it can be.

Promises that a plan can be printed, saved as JSON, loaded back equal, and turned into the settings
that an engine is made with. Computes nothing but sums and quotients of what it was given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..runtime.placement import Placement
from ..runtime.settings import EngineSettings, FlashAttention, KVType
from ..units import bytes_text

_FORMAT = 1


@dataclass(frozen=True)
class DevicePlan:
    """What one device holds, in bytes, and what decoding a token reads of it.

    ``weights`` are pairs of a role and its bytes, which together are ``weights_bytes`` to within
    what llama.cpp pads. ``layers`` counts from 0, the number of layers being the output layer.
    ``read_bytes`` are weights; ``kv_read_bytes`` is the cache when the context is full.
    """

    name: str
    description: str
    type: str
    total_bytes: int | None
    free_bytes: int | None
    kept_free_bytes: int
    layers: tuple[int, ...]
    weights: tuple[tuple[str, int], ...]
    weights_bytes: int
    kv_full_bytes: int
    kv_chunked_bytes: int
    compute_bytes: int
    output_bytes: int
    read_bytes: int
    kv_read_bytes: int
    bandwidth: int | None
    bandwidth_source: str | None
    endpoint: str | None = None

    @property
    def kv_bytes(self) -> int:
        """The KV cache of the full and the chunked layers."""
        return self.kv_full_bytes + self.kv_chunked_bytes

    @property
    def used_bytes(self) -> int:
        """All that the plan puts here."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes

    @property
    def left_bytes(self) -> int:
        """What is left, beside what is kept free; negative where it does not fit."""
        return (self.free_bytes or 0) - self.kept_free_bytes - self.used_bytes

    @property
    def idle(self) -> bool:
        """Whether nothing is put here."""
        return not self.used_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields, and the sums that people ask for."""
        return asdict(self) | {
            "layers": list(self.layers),
            "weights": dict(self.weights),
            "kv_bytes": self.kv_bytes,
            "used_bytes": self.used_bytes,
            "left_bytes": self.left_bytes,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DevicePlan:
        """What `as_dict` wrote."""
        fields = {name: record[name] for name in cls.__dataclass_fields__}
        fields["layers"] = tuple(fields["layers"])
        fields["weights"] = tuple((role, size) for role, size in record["weights"].items())
        return cls(**fields)


@dataclass(frozen=True)
class Cost:
    """What another choice would cost or bring: a clause, and whether it fits."""

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
        """What `as_dict` wrote."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Plan:
    """Where a model goes, and what comes of it. ``str(plan)`` is one line.

    ``devices`` are the GPUs and last main memory. ``why`` says how the placement was chosen,
    ``notes`` what else one should know, ``choices`` what other wishes would cost. ``described`` is
    whether the GPUs are not those of this machine. ``from_disk_bytes`` is what of the weights does
    not fit into main memory, and would be read from the file again and again. ``images`` is what no
    device holds: the weights for pictures; None for a model without, or a GGUF, which does not say.
    """

    model: str
    path: str
    recipe: str | None
    n_layer: int
    trained_context: int
    context: int
    n_parallel: int
    ubatch: int
    kv_type: KVType
    flash_attention: FlashAttention
    use_extra_bufts: bool
    workers: tuple[str, ...]
    placement: Placement
    described: bool
    devices: tuple[DevicePlan, ...]
    images: Images | None = None
    why: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    choices: tuple[Cost, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every device has room for what is put there."""
        return all(device.left_bytes >= 0 for device in self.devices)

    @property
    def from_disk_bytes(self) -> int:
        """Bytes of mapped weights for which main memory is short; 0 where it is not."""
        return max(-self.host.left_bytes, 0)

    @property
    def host(self) -> DevicePlan:
        """Main memory."""
        return self.devices[-1]

    @property
    def gpus(self) -> tuple[DevicePlan, ...]:
        """All other devices."""
        return self.devices[:-1]

    @property
    def settings(self) -> EngineSettings:
        """What an engine is made with to be placed like this."""
        return EngineSettings(
            n_ctx=self.context,
            n_ubatch=self.ubatch,
            n_parallel=self.n_parallel,
            use_extra_bufts=self.use_extra_bufts,
            placement=self.placement,
            kv_type=self.kv_type,
            flash_attention=self.flash_attention,
            workers=self.workers,
        )

    @property
    def bytes_per_token_read(self) -> int:
        """Bytes of weights that decoding one token reads, on all devices."""
        return sum(device.read_bytes for device in self.devices)

    @property
    def kv_bytes_per_token_read(self) -> int:
        """Bytes of the cache that decoding one token reads when the context is full."""
        return sum(device.kv_read_bytes for device in self.devices)

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
            read = device.read_bytes + (device.kv_read_bytes if with_cache else 0)
            if not read:
                continue
            if not device.bandwidth or (device is self.host and self.from_disk_bytes):
                return None
            seconds += read / device.bandwidth
        return 1.0 / seconds if seconds else None

    def __str__(self) -> str:
        parts = [
            f"{device.name} {bytes_text(device.used_bytes, digits=2)}"
            for device in self.devices
            if not device.idle
        ]
        fits = "" if self.fits else ", which does not fit"
        return f"{self.model}, {self.context:,} tokens of {self.kv_type}: {', '.join(parts)}{fits}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        record = asdict(self)
        record["devices"] = [device.as_dict() for device in self.devices]
        record["images"] = self.images.as_dict() if self.images else None
        return {
            "format": _FORMAT,
            "fits": self.fits,
            **record,
            "experts_on_cpu": self.experts_on_cpu,
            "from_disk_bytes": self.from_disk_bytes,
            "bytes_per_token_read": self.bytes_per_token_read,
            "kv_bytes_per_token_read": self.kv_bytes_per_token_read,
            "estimated_decode_tokens_per_second": self.estimated_decode_tokens_per_second,
            "estimated_decode_tokens_per_second_full": self.estimated_decode_tokens_per_second_full,
            "bandwidths": {
                device.name: {
                    "bytes_per_second": device.bandwidth,
                    "source": device.bandwidth_source,
                }
                for device in self.devices
            },
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Plan:
        """What `as_dict` wrote.

        Raises:
            SettingError: it is no plan, or one of another version.
        """
        if record.get("format") != _FORMAT:
            raise SettingError(
                "this is not a plan that can be read",
                found=f"format {record.get('format')!r}",
                expected=f"format {_FORMAT}",
            )
        try:
            fields = {name: record[name] for name in cls.__dataclass_fields__}
            placement = dict(fields["placement"])
            fields["placement"] = Placement(
                n_gpu_layers=placement["n_gpu_layers"],
                devices=None if placement["devices"] is None else tuple(placement["devices"]),
                tensor_split=tuple(placement["tensor_split"]),
                overrides=tuple((one, device) for one, device in placement["overrides"]),
                offload_kqv=placement["offload_kqv"],
            )
            fields["devices"] = tuple(map(DevicePlan.from_dict, fields["devices"]))
            if fields["images"] is not None:
                fields["images"] = Images.from_dict(fields["images"])
            fields["choices"] = tuple(Cost(**choice) for choice in fields["choices"])
            for name in ("workers", "why", "notes"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SettingError("this plan is damaged", found=repr(error)) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read what `save` wrote.

        Raises:
            SettingError: it is no plan.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise SettingError(f"{os.fspath(path)} is not JSON", found=error) from error
        return cls.from_dict(record if isinstance(record, dict) else {})

    @property
    def experts_on_cpu(self) -> int:
        """Bytes of experts in main memory beside GPUs; 0 where there is no GPU in use."""
        if all(gpu.idle for gpu in self.gpus):
            return 0
        return dict(self.host.weights).get("expert", 0)

    def more_modest(self) -> Plan | None:
        """The next plan that asks less of the GPUs, None after the CPU alone.

        Raises:
            Llama4EdgeError: the model can no longer be read.
        """
        from .planning import more_modest  # it makes plans, of which it knows this one

        return more_modest(self)

    def with_notes(self, *notes: str) -> Plan:
        """The same plan with more to be known about it."""
        return replace(self, notes=(*self.notes, *notes))

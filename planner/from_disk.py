"""What decoding reads from the disk, where main memory is short of weights that are mapped.

Promises an expectation with its assumptions, and a rate that was measured on the file at hand. Does
not know what else the machine keeps in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..system.disk import ReadRate, read_rate
from ..untrusted import Record
from .geometry import Geometry
from .layout import DeviceLoad


@dataclass(frozen=True)
class DiskReads:
    """Bytes that decoding a token reads from the model's file, on average, and the bytes a second
    that its disk gives, None where that is unknown.

    What every token reads stays in memory before anything else, and tokens visit experts evenly: so
    much of the experts is read again as has no place. Where not even the reads of one token have
    one, all of them come from the disk.
    """

    read_bytes: int
    bandwidth: int | None
    bandwidth_source: str

    @property
    def seconds(self) -> float | None:
        """Seconds a token that reading takes."""
        return self.read_bytes / self.bandwidth if self.bandwidth else None

    @classmethod
    def from_record(cls, record: Record) -> DiskReads:
        """What `dataclasses.asdict` made of one.

        Raises:
            SettingError: an entry is missing, or of another type.
        """
        known = record.get("bandwidth") is not None
        return cls(
            read_bytes=record.integer("read_bytes"),
            bandwidth=record.integer("bandwidth") if known else None,
            bandwidth_source=record.text("bandwidth_source"),
        )


def disk_reads(
    geometry: Geometry, host: DeviceLoad, weights_bytes: int, short_bytes: int
) -> DiskReads | None:
    """What decoding would read from the disk; None where main memory cannot even hold the context.

    Args:
        host: what main memory holds of the model.
        weights_bytes: bytes that its weights take, all of them mapped.
        short_bytes: bytes that it is short.
    """
    resident = weights_bytes - short_bytes
    if resident < 0:
        return None
    hparams, experts = geometry.hparams, host.bytes_of("expert")
    visited = experts * hparams.n_expert_used // hparams.n_expert if experts else 0
    always = host.read_bytes - visited
    if resident < host.read_bytes:
        expected = host.read_bytes
    else:
        absent = max(experts - (resident - always), 0)
        expected = visited * absent // experts if experts else 0
    rate = _rate(geometry)
    return DiskReads(expected, rate.bytes_per_second, rate.source)


def _rate(geometry: Geometry) -> ReadRate:
    """How fast the file with most of the weights gives what is wanted of an expert at a time."""
    if not geometry.files:
        return ReadRate(None, "not measured because the file is not here")
    path = max(geometry.files, key=lambda path: path.stat().st_size)
    experts = [weight.nbytes for weight in geometry.weights if weight.role == "expert"]
    if not experts:
        return ReadRate(None, "not measured for a model without experts")
    return read_rate(path, max(experts) // geometry.hparams.n_expert)

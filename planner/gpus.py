"""The GPUs that a plan can be made for by name: their memory, and the bandwidth of that memory.

Memory is the total that the driver reports (``nvidia-smi``, ``rocm-smi``), in MiB; bandwidth is
that of the maker's data sheet, in GB/s. Of unified memory three quarters count: by default, macOS
gives its GPU that much. Knows nothing of the machine at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SettingError, did_you_mean
from ..ranges import wrong_type

_MIB = 2**20
_GB = 10**9


@dataclass(frozen=True)
class GPU:
    """A model of GPU: ``memory`` in bytes, ``bandwidth`` in bytes read a second."""

    name: str
    memory: int
    bandwidth: int

    @property
    def most_together(self) -> int:
        """How many go into one machine: 4 for desktops, 8 for servers, 1 of unified memory."""
        if self.name.startswith(("M1", "M2", "M3", "M4")):
            return 1
        return 4 if self.name.startswith(("RTX 30", "RTX 40", "RTX 50", "RX")) else 8


# Name, MiB, GB/s.
_TABLE: tuple[tuple[str, int, int], ...] = (
    ("RTX 3060", 12288, 360),
    ("RTX 4060 Ti 16GB", 16380, 288),
    ("RTX 5060 Ti 16GB", 16311, 448),
    ("RTX 4070 Ti SUPER", 16376, 672),
    ("RTX 4080", 16376, 717),
    ("RTX 5070 Ti", 16303, 896),
    ("RTX 5080", 16303, 960),
    ("T4", 15360, 320),
    ("RX 7900 XTX", 24560, 960),
    ("RTX 3090", 24576, 936),
    ("RTX 4090", 24564, 1008),
    ("A10", 23028, 600),
    ("L4", 23034, 300),
    ("RTX 5090", 32607, 1792),
    ("A100 40GB", 40960, 1555),
    ("RTX A6000", 49140, 768),
    ("RTX 6000 Ada", 49140, 960),
    ("L40S", 46068, 864),
    ("A100 80GB", 81920, 2039),
    ("H100", 81559, 3352),
    ("H100 PCIe", 81559, 2039),
    ("H100 NVL", 95830, 3938),
    ("RTX PRO 6000", 97887, 1792),
    ("GH200", 97871, 4022),
    ("H200", 143771, 4800),
    ("B200", 183359, 8000),
    ("MI300X", 196592, 5300),
    ("M4 Pro 64GB", 49152, 273),
    ("M1 Max 64GB", 49152, 400),
    ("M4 Max 128GB", 98304, 546),
    ("M2 Ultra 192GB", 147456, 800),
    ("M3 Ultra 256GB", 196608, 819),
    ("M3 Ultra 512GB", 393216, 819),
)

GPUS: tuple[GPU, ...] = tuple(GPU(name, mib * _MIB, gb * _GB) for name, mib, gb in _TABLE)
"""All of them, roughly by size."""

# Other names for what is in the table.
_ALIASES = {
    "h100sxm": "h100",
    "h10080gb": "h100",
    "h10080gbhbm3": "h100",
    "a100": "a10080gb",
    "a100sxm480gb": "a10080gb",
    "a100sxm440gb": "a10040gb",
    "a100pcie40gb": "a10040gb",
    "a6000": "rtxa6000",
    "6000ada": "rtx6000ada",
    "rtx6000adageneration": "rtx6000ada",
    "4060ti": "rtx4060ti16gb",
    "5060ti": "rtx5060ti16gb",
    "rtxpro6000blackwell": "rtxpro6000",
    "rtxpro6000blackwellworkstationedition": "rtxpro6000",
    "rtxpro6000blackwellserveredition": "rtxpro6000",
    "a10g": "a10",
    "m3ultra": "m3ultra512gb",
    "m2ultra": "m2ultra192gb",
    "m4max": "m4max128gb",
    "m1max": "m1max64gb",
    "m4pro": "m4pro64gb",
}
# Names of makers and brands are ignored.
_NOISE = re.compile(r"\b(nvidia|geforce|amd|radeon|instinct|apple|tesla)\b")
# An x at the end of a word (rtx, rx, max) is no sign of a count.
_COUNTED = re.compile(
    r"(?P<name>.*\S)\s*(?:(?<![a-z]{2})(?<!\b[a-z])x|\*)\s*(?P<count>\d{1,3})"
    r"|(?P<n>\d{1,3})\s*[x*]\s*(?P<of>\S.*)",
    re.IGNORECASE,
)


def _key(name: str) -> str:
    key = re.sub(r"[^a-z0-9]", "", _NOISE.sub("", name.lower()))
    return _ALIASES.get(key, key)


_BY_KEY = {_key(gpu.name): gpu for gpu in GPUS}
_BY_KEY |= {key.removeprefix("rtx").removeprefix("rx"): gpu for key, gpu in _BY_KEY.items()}


def known_gpu(description: str) -> GPU | None:
    """The GPU of the table that a driver or a person describes so, or None."""
    return _BY_KEY.get(_key(description))


def gpus_named(text: str) -> tuple[GPU, ...]:
    """The GPUs that ``"h100"``, ``"H100 x8"`` or ``"2x RTX 4090, 3090"`` name, in order.

    Raises:
        SettingError: a name is not in the table, or a count is 0.
    """
    if not isinstance(text, str):
        raise wrong_type("a GPU's name", text, "a str")
    gpus: list[GPU] = []
    for part in text.split(","):
        counted = _COUNTED.fullmatch(part.strip())
        if counted and known_gpu(part) is None:
            name = counted["name"] or counted["of"]
            count = int(counted["count"] or counted["n"])
        else:
            name, count = part.strip(), 1
        gpu = known_gpu(name)
        if gpu is None:
            names = [gpu.name for gpu in GPUS]
            hints = [did_you_mean(name, names), "Give vram=BYTES for any other GPU."]
            raise SettingError(
                f"there is no GPU called {name!r} in the table",
                expected=", ".join(names),
                hint=" ".join(hint for hint in hints if hint),
            )
        if count == 0:
            raise SettingError(
                "the number of GPUs is outside its range",
                found=repr(part.strip()),
                expected="1 or more",
            )
        gpus += [gpu] * count
    return tuple(gpus)

"""The GPUs that a plan can be made for by name: their memory, and the bandwidth of that memory.

Memory is the total that the driver reports (``nvidia-smi``, ``rocm-smi``), in MiB; bandwidth is
that of the maker's data sheet, in GB/s. A GPU that shares one memory with the processor counts with
what its system lets it have by default. Knows nothing of the machine at hand.

Where the rows of shared memory come from:

- Apple: apple.com/mac-studio/specs, apple.com/mac-mini/specs, and Apple's announcements, last of
  M5 (October 2025), M5 Pro and M5 Max (March 2026), M6 and M5 Ultra (August 2026). Two thirds of
  32 GB and three quarters of more are the GPU's (github.com/ggml-org/llama.cpp/discussions/2182).
- Strix Halo: amd.com, Ryzen AI Max+ 395: 256 bits of LPDDR5X-8000; Gorgon Halo: Ryzen AI Max+ PRO
  495, LPDDR5X-8533. Half is the GPU's, and how to raise it:
  rocm.docs.amd.com/en/latest/how-to/system-optimization/strixhalo.html. Linux has 31/32 of it.
- DGX Spark: docs.nvidia.com/dgx/dgx-spark/hardware.html; llama.cpp lists it with 124,610 MiB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SettingError, did_you_mean
from ..ranges import wrong_type

_MIB = 2**20
_GIB = 2**30
_GB = 10**9


@dataclass(frozen=True)
class SharedMemory:
    """One memory of a GPU and the processor, ``total`` bytes of which the system has.

    ``by_default`` says how much of it the GPU may have, ``how`` what gives it ``most`` bytes; that
    is empty where it has as many already.
    """

    total: int
    by_default: str
    most: int
    how: str


@dataclass(frozen=True)
class GPU:
    """A model of GPU: ``memory`` in bytes, ``bandwidth`` in bytes read a second.

    ``shared`` is the memory that it has in common with the processor, of which ``memory`` is what
    it may have by default; None where its memory is its own. ``chip`` is its name without a size.
    """

    name: str
    memory: int
    bandwidth: int
    shared: SharedMemory | None = None
    chip: str = ""

    @property
    def most_together(self) -> int:
        """How many go into one machine: 4 for desktops, 8 for servers, 1 of shared memory."""
        if self.shared is not None:
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
)

# Chip, GB, GB/s, of one size the fastest first. The largest of a chip is meant where no size is
# given.
_APPLE: tuple[tuple[str, int, int], ...] = (
    ("M6", 32, 170),
    ("M5", 32, 153),
    ("M5 Max", 36, 460),
    ("M4 Max", 36, 410),
    ("M5 Max", 48, 614),
    ("M4 Max", 48, 546),
    ("M5 Pro", 48, 307),
    ("M4 Pro", 48, 273),
    ("M5 Max", 64, 614),
    ("M4 Max", 64, 546),
    ("M1 Max", 64, 400),
    ("M5 Pro", 64, 307),
    ("M4 Pro", 64, 273),
    ("M5 Ultra", 96, 1200),
    ("M3 Ultra", 96, 819),
    ("M2 Max", 96, 400),
    ("M1 Ultra", 128, 800),
    ("M5 Max", 128, 614),
    ("M4 Max", 128, 546),
    ("M3 Max", 128, 400),
    ("M2 Ultra", 192, 800),
    ("M5 Ultra", 256, 1200),
    ("M3 Ultra", 256, 819),
    ("M5 Ultra", 512, 1200),
    ("M3 Ultra", 512, 819),
)
_AMD: tuple[tuple[str, int, int], ...] = (
    ("Strix Halo", 32, 256),
    ("Strix Halo", 64, 256),
    ("Strix Halo", 96, 256),
    ("Strix Halo", 128, 256),
    ("Gorgon Halo", 192, 273),
)
_LEFT_TO_THE_SYSTEM = 8  # GB, where the limit of the GPU is raised


def _apple(chip: str, size: int, rate: int) -> GPU:
    most = size - _LEFT_TO_THE_SYSTEM
    share, words = (2 / 3, "two thirds") if size <= 32 else (3 / 4, "three quarters")
    shared = SharedMemory(
        total=size * _GIB,
        by_default=f"macOS gives the GPU about {words} of it by default",
        most=most * _GIB,
        how=f"`sudo sysctl iogpu.wired_limit_mb={most * 1024}` gives it {most} GiB",
    )
    return GPU(f"{chip} {size}GB", int(size * share) * _GIB, rate * _GB, shared, chip)


def _amd(chip: str, size: int, rate: int) -> GPU:
    total = size * _GIB * 31 // 32
    most = size - _LEFT_TO_THE_SYSTEM
    shared = SharedMemory(
        total=total,
        by_default="Linux gives the GPU half of it by default (GTT), beside what the firmware "
        "carves out",
        most=most * _GIB,
        how=f"`amd-ttm --set {most}`, or ttm.pages_limit={most * 2**18} for the kernel, gives it "
        f"{most} GiB, with the firmware's carve-out at its smallest; on Windows, the Variable "
        "Graphics Memory of AMD's driver",
    )
    return GPU(f"{chip} {size}GB", total // 2, rate * _GB, shared, chip)


_SPARK = SharedMemory(
    total=124_610 * _MIB, by_default="the GPU may have nearly all of it", most=0, how=""
)

GPUS: tuple[GPU, ...] = (
    *(GPU(name, mib * _MIB, gb * _GB, None, name) for name, mib, gb in _TABLE),
    *(_amd(*row) for row in _AMD),
    GPU("DGX Spark", _SPARK.total, 273 * _GB, _SPARK, "DGX Spark"),
    *(_apple(*row) for row in _APPLE),
)
"""All of them: those with a memory of their own, then those that share it, roughly by size."""

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
}
# What drivers, makers and people call chips that share memory, and machines with one: any name with
# this in it, once it is a key.
_CALLED = {
    "gb10": "DGX Spark",
    "dgxspark": "DGX Spark",
    "ascentgx10": "DGX Spark",
    "thinkstationpgx": "DGX Spark",
    "strixhalo": "Strix Halo",
    "gfx1151": "Strix Halo",
    "8060s": "Strix Halo",
    "8050s": "Strix Halo",
    "8040s": "Strix Halo",
    "frameworkdesktop": "Strix Halo",
    "evox2": "Strix Halo",
    "mss1max": "Strix Halo",
    "gtr9pro": "Strix Halo",
    "z2minig1a": "Strix Halo",
    "8065s": "Gorgon Halo",
    "gorgonhalo": "Gorgon Halo",
}
_RYZEN = re.compile(r"max(?:pro)?([34][89]\d)")
_SIZE = re.compile(r"\(?\b(\d{2,3})\s*(?:gb|gib|g)\b\)?")
# Names of makers and brands are ignored.
_NOISE = re.compile(
    r"\b(nvidia|geforce|amd|radeon|instinct|apple|tesla|mac studio|mac mini"
    r"|macbook pro(?: 1[46](?:[ -]inch)?)?)\b|\(\d+-core[^)]*\)"
)
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


def known_gpu(description: str, memory: int | None = None) -> GPU | None:
    """The GPU of the table that a driver or a person describes so, or None.

    Args:
        memory: bytes of the machine's memory, which tell one that shares it from the same chip with
            another size where the description says none; None is the largest.
    """
    return _BY_KEY.get(_key(description)) or _of_shared_memory(description.lower(), memory)


def _of_shared_memory(text: str, memory: int | None) -> GPU | None:
    size = _SIZE.search(text)
    key = _key(_SIZE.sub("", text))
    ryzen = _RYZEN.search(key)
    if ryzen:
        chip = "Strix Halo" if ryzen[1].startswith("3") else "Gorgon Halo"
    else:
        named = (chip for part, chip in _CALLED.items() if part in key)
        chip = next(named, "") or next((gpu.chip for gpu in GPUS if key == _key(gpu.chip)), "")
    same = [gpu for gpu in GPUS if gpu.shared is not None and gpu.chip == chip]
    if size:
        return next((gpu for gpu in same if _gigabytes(gpu) == int(size[1])), None)
    if not same or memory is None:
        return same[-1] if same else None
    return min(same, key=lambda gpu: abs(_gigabytes(gpu) * _GIB - memory))


def _gigabytes(gpu: GPU) -> int:
    """The size under which a machine of shared memory is sold."""
    size = _SIZE.search(gpu.name.lower())
    return int(size[1]) if size else 128


def _listed() -> str:
    """All names; of chips in several sizes, ``M4 Pro 48/64GB``."""
    sizes: dict[str, list[str]] = {}
    for gpu in GPUS:
        size = gpu.name.removeprefix(gpu.chip).strip().removesuffix("GB")
        sizes.setdefault(gpu.chip, []).append(size)
    return ", ".join(
        f"{chip} {'/'.join(of_chip)}GB" if any(of_chip) else chip for chip, of_chip in sizes.items()
    )


def gpus_named(text: str) -> tuple[GPU, ...]:
    """The GPUs that ``"h100"``, ``"H100 x8"`` or ``"2x RTX 4090, 3090"`` name, in order.

    Raises:
        SettingError: a name is not in the table, or a count is 0.
    """
    if not isinstance(text, str):
        raise wrong_type("a GPU's name", text, "a str")
    gpus: list[GPU] = []
    for part in text.split(","):
        name, count = part.strip(), 1
        counted = _COUNTED.fullmatch(name)
        if counted:
            alone = counted["name"] or counted["of"]
            if known_gpu(alone) is not None or known_gpu(name) is None:
                name, count = alone, int(counted["count"] or counted["n"])
        gpu = known_gpu(name)
        if gpu is None:
            names = [gpu.name for gpu in GPUS]
            hints = [did_you_mean(name, names), "Give vram=BYTES for any other GPU."]
            raise SettingError(
                f"there is no GPU called {name!r} in the table",
                expected=_listed(),
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

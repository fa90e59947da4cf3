"""Installs into the environment that runs it, nothing but locked versions, and says how far it is.

Promises that whatever pip chooses, it chooses from the lock (requirements/lock.txt, if no other is
named), and that build tools are those of the lock too, because pip fetches none for itself.
"""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

from .progress import ProgressLine, follow, log_end

LOCK = Path(__file__).parents[1] / "requirements" / "lock.txt"

_COLLECTING = re.compile(r"(?:Collecting|Processing|Obtaining) ([^\s;<>=!~\[(]+)")
_DOWNLOADING = re.compile(r"\s*Downloading (\S+) \((.+)\)")
_INSTALLING = "Installing collected packages: "


class Installation:
    """What pip's lines say, drawn on a progress line; `site` is where packages arrive."""

    def __init__(self, progress: ProgressLine, site: Path) -> None:
        self._progress = progress
        self._site = site
        self._collected: set[str] = set()
        self._text = "asking the index"
        self.packages: frozenset[str] = frozenset()

    def read(self, line: str) -> None:
        """Take one line of output."""
        if collecting := _COLLECTING.match(line.strip()):
            self._collected.add(collecting[1].lower())
            self._text = f"{len(self._collected)} packages found"
        elif download := _DOWNLOADING.match(line):
            name = download[1].rpartition("/")[2].partition("-")[0]
            self._text = f"{len(self._collected)} packages found, {name} is {download[2]}"
        elif line.startswith(_INSTALLING):
            names = line.removeprefix(_INSTALLING).split(", ")
            self.packages = frozenset(_normal(name) for name in names)
        elif line.lstrip().startswith("Building "):
            self._text = "compiling the encoders" if "llama4-edge" in line else line.strip()
        else:
            return
        self.draw()

    def draw(self) -> None:
        """Say it again: files may have arrived."""
        if not self.packages:
            self._progress.update(self._text)
            return
        names = (_normal(path.name.partition("-")[0]) for path in self._site.glob("*.dist-info"))
        count = len(self.packages.intersection(names))
        text = f"{count}/{len(self.packages)} packages installed"
        self._progress.update(text, count / len(self.packages))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def install(title: str, arguments: list[str], lock: Path = LOCK) -> int:
    """``pip install`` with `arguments`, from `lock`; the exit status."""
    pip = [sys.executable, "-m", "pip", "install", "--constraint", str(lock)]
    pip += ["--no-build-isolation", "--progress-bar", "off", *arguments]
    progress = ProgressLine(title)
    installation = Installation(progress, Path(sysconfig.get_path("purelib")))
    with tempfile.TemporaryDirectory(prefix="llama4-edge-install-") as directory:
        log = Path(directory) / "pip.log"
        status = follow(pip, installation.read, installation.draw, log=log)
        if status == 0:
            count = len(installation.packages)
            packages = "1 package" if count == 1 else f"{count} packages"
            progress.finish(f"{packages} installed" if count else "all there")
            return 0
        progress.finish("failed")
        print(log_end(log), file=sys.stderr)
    return status


def main() -> int:
    """Read the command line: a title, then pip's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("title", help="what is said to be installed")
    parser.add_argument("--lock", type=Path, default=LOCK, help="the file of locked versions")
    own, arguments = parser.parse_known_args()
    return install(own.title, arguments, own.lock)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")

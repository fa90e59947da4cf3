"""`llama4 doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from .declare import command, json_flag, verbose_flag
from .output import give, show_warnings


@dataclass(frozen=True)
class DoctorOptions:
    """What `llama4 doctor` may be asked."""

    as_json: bool = json_flag()
    verbose: bool = verbose_flag()


@command(DoctorOptions)
def doctor(options: DoctorOptions) -> int:
    """Check what is installed, and what is missing.

    Shows what is built into llama.cpp, the devices with their memory, and for each thing that is
    missing the command that installs it. Exits with 1 when something is broken.

    \b
    llama4 doctor
    llama4 doctor --json | jq .devices
    """
    from ..runtime.doctor import doctor as diagnose
    from ..terminal.tables import diagnosis_view

    show_warnings(verbose=options.verbose)
    diagnosis = diagnose()
    give(diagnosis.as_dict(), diagnosis, diagnosis_view, as_json=options.as_json)
    return 0 if diagnosis.healthy else 1

"""`llama4 doctor`: what it shows and how it ends."""

from __future__ import annotations

import json

import pytest

from tests.command_line import Command


def test_doctor_names_the_library_and_each_device(llama4: Command) -> None:
    record = json.loads(llama4("doctor", "--json").stdout)
    result = llama4("doctor")
    assert result.exit_code == (0 if record["healthy"] else 1)
    assert record["library"]["llama_cpp"] in result.stdout
    for device in record["devices"]:
        assert device["description"] in result.stdout
    for finding in record["findings"]:
        assert finding["what"] in result.stdout
        assert finding["fix"] is None or f"  {finding['fix']}\n" in result.stdout


def test_doctor_exits_with_1_when_something_is_broken(
    llama4: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama4_edge.runtime import doctor

    broken = doctor.Finding("problem", "[red]nothing[/red] works", "make it work")
    monkeypatch.setattr(doctor, "gpu_findings", lambda *_: (broken,))
    result = llama4("doctor")
    assert result.exit_code == 1
    assert "problem [red]nothing[/red] works\n  make it work\n" in result.stdout

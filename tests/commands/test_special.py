"""`--special`: control tokens are read in a prompt and shown in an answer."""

from __future__ import annotations

from pathlib import Path

from tests.command_line import RUN, Command
from tests.test_special_tokens import speaker


def test_run_and_chat_show_control_tokens_with_a_flag(llama4: Command, tmp_path: Path) -> None:
    path = speaker().write(tmp_path / "m.gguf")
    asked = ["x", *RUN, "--temp", "0", "-n", "2"]
    assert llama4("run", path, *asked).stdout.strip() == ""
    assert llama4("run", path, *asked, "--special").stdout.strip() == "<|header_start|>" * 2
    chatted = llama4("chat", path, *asked[1:], "-sp", stdin=b"Hello\n")
    assert "<|header_start|>" * 2 in chatted.stdout

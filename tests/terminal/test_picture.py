"""Pictures in terminals that draw pixels, and in others, by the bytes that they are sent."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.pseudo_terminal import AT_A_TERMINAL, PATIENCE

ROOT = Path(__file__).parents[2]
RED = (210, 30, 40)
# textual-image waits a tenth of a second for an answer; here the answers come for certain.
PATIENT = """
import contextlib
import textual_image._terminal as terminal
asked = terminal.capture_terminal_response
terminal.capture_terminal_response = lambda start_marker, end_marker, timeout: asked(
    start_marker, end_marker, {patience}
)
"""
SHOW = f"""
from PIL import Image
from llama4_edge.terminal.picture import show_picture
show_picture(Image.new("RGB", (80, 40), {RED}))
print("done", flush=True)
"""
ATTRIBUTES, GRAPHICS = re.compile(rb"\x1b\[c"), re.compile(rb"\x1b_Gi=(\d+)")


def drawn(answers: Mapping[str, str], *, patience: float, stdin: int | None = None) -> bytes:
    """What a terminal is sent that answers these queries: ``attributes`` and ``graphics``."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 1000, 600))
    code = AT_A_TERMINAL if stdin is None else ""
    process = subprocess.Popen(
        [sys.executable, "-c", code + PATIENT.format(patience=patience) + SHOW],
        stdin=slave if stdin is None else stdin,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        cwd=ROOT.parent,
        start_new_session=True,
    )
    os.close(slave)
    sent, told = b"", {"attributes": False, "graphics": False}
    try:
        while b"done" not in sent:
            assert select.select([master], [], [], PATIENCE)[0], sent
            try:
                sent += os.read(master, 1 << 16)
            except OSError:  # the process has ended
                break
            if ATTRIBUTES.search(sent) and not told["attributes"]:
                told["attributes"] = True
                os.write(master, answers["attributes"].encode())
            query = GRAPHICS.search(sent)
            if query and not told["graphics"] and "graphics" in answers:
                told["graphics"] = True
                os.write(master, answers["graphics"].replace("ID", query[1].decode()).encode())
        assert process.wait(PATIENCE) == 0, sent
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return sent


@pytest.mark.parametrize("terminal", ["\x1b[?62;4c", "\x1b[?65;4;6;18;22c"])
def test_iterm2_and_wezterm_are_sent_sixels(terminal: str) -> None:
    sent = drawn({"attributes": terminal}, patience=PATIENCE)
    sixels = re.search(rb"\x1bP[\d;]*q(.*?)\x1b\\", sent, re.DOTALL)
    assert sixels is not None
    # The one colour in hundredths: 210 of 255 is 82, 30 is 12, 40 is 16, or about that.
    assert re.search(rb"#\d+;2;8[12];1[12];1[56]", sixels[1])


def test_kitty_is_sent_its_own_graphics() -> None:
    answers = {"attributes": "\x1b[?62;c", "graphics": "\x1b_Gi=ID;OK\x1b\\"}
    sent = drawn(answers, patience=PATIENCE)
    commands = re.findall(rb"\x1b_G([^;\x1b]*)", sent)
    assert any(b"a=q" in one for one in commands)
    assert any(b"f=100" in one or b"f=24" in one or b"f=32" in one for one in commands[1:])
    assert b"\x1bP" not in sent


def test_another_terminal_is_sent_half_blocks() -> None:
    """It tells its attributes, and says nothing to a query that it does not know."""
    sent = drawn({"attributes": "\x1b[?62;22c"}, patience=0.1)
    assert "▀".encode() in sent
    assert b"38;2;210;30;40" in sent
    assert b"\x1bP" not in sent


def test_a_terminal_that_cannot_answer_is_sent_nothing() -> None:
    """Messages come from a file: its bytes are no answers."""
    sent = drawn({}, patience=PATIENCE, stdin=subprocess.DEVNULL)
    assert sent.strip() == b"done"

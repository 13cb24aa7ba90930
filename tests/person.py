"""For tests: a person at a terminal, who starts a program, types, and sees what a terminal emulator shows."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte
from conftest import ROOT


class Person:
    """with Person("chat.py", ...) as person: person.types("Hi\\r"); person.sees("Hello")."""

    def __init__(self, *command, rows=40, columns=180, **env):
        self.controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # The screen is as wide as the paper is long: what was said before scrolls into `history`.
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000)
        self.screen.write_process_input = self.types  # where the cursor is, when the program asks
        self.stream, self.raw = pyte.ByteStream(self.screen), b""
        clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.child = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdin=terminal, stdout=terminal,
                                      stderr=terminal, start_new_session=True,
                                      env=clean | {"TERM": "xterm-256color"} | env)
        os.close(terminal)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        os.close(self.controller)

    def types(self, text):
        """Presses keys: "\\r" is Enter, "\\x03" Ctrl-C, "\\x04" Ctrl-D, "\\t" Tab."""
        os.write(self.controller, text.encode())

    def look(self, seconds=0.05):
        """Takes in what the program has written. False if it has gone."""
        if select.select([self.controller], [], [], seconds)[0]:
            try:
                data = os.read(self.controller, 65536)
            except OSError:
                return False
            self.raw += data
            self.stream.feed(data)
            return bool(data)
        return True

    @property
    def paper(self):
        """All lines, those that have scrolled away first."""
        lines = ["".join(line[n].data for n in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*lines, *self.screen.display]).rstrip()

    def sees(self, pattern, seconds=120):
        """Waits for a regular expression on the paper, and returns its match."""
        end = time.monotonic() + seconds
        while True:
            there = self.look()
            found = re.search(pattern, self.paper, re.M | re.S)
            if found or not there or time.monotonic() > end:
                assert found, f"expected {pattern!r}, found:\n{self.paper}"
                return found

    def edits(self, text, seconds=120):
        """Waits until the line with the cursor is this one."""
        end, found = time.monotonic() + seconds, None
        while found != text:
            assert self.look() and time.monotonic() < end, f"expected {text!r}, found {found!r} in:\n{self.paper}"
            found = self.screen.display[self.screen.cursor.y].rstrip()

    def leaves(self, status=0, seconds=60):
        """Waits until the program has ended."""
        end = time.monotonic() + seconds
        while self.look() and time.monotonic() < end:
            pass
        assert self.child.wait(timeout=60) == status, self.paper

"""The tool `python`: runs the code that the model writes. What is defined in one call is there in the next ones.

The code runs in a process of its own (child.py) with limits of time, memory and output, in an empty folder, without
this program's environment, and without a network where the system can have it so. It is still a program that runs as
you: it can read your files and change them. For root there is also no limit of how many processes it starts, but time.
"""

import json
import os
import re
import stat
import tempfile
import weakref
from contextlib import suppress

import harmony
from tools.process import Ended, Process, without_network

SECONDS = 120  # a call may take; harmony.PYTHON says so
NOTHING = "[WARN] No output available. Use print() to output anything to stdout to receive the output"
RESTARTED = "the session was restarted: its variables are gone"


class Python:
    """confirm: a function that is asked with the code before each run, and says whether it may run; None: it may.
    `offline`: whether the code has no network. `progress`: see Process."""

    namespace, progress = harmony.PYTHON, staticmethod(lambda: None)

    def __init__(self, confirm=None):
        self.confirm, self.offline, self.lost = confirm, bool(without_network()), False
        self.process = Process("python", confined=True)
        self.process.progress = lambda: self.progress()
        self._move_in()

    def _move_in(self):
        """A new folder for the code, which is its home, too."""
        self.folder = tempfile.TemporaryDirectory(prefix="python-", ignore_cleanup_errors=True)
        self._move_out = weakref.finalize(self, clear, self.folder)  # also when this program ends
        self.process.cwd = self.folder.name
        self.process.env = {"LANG": "C.UTF-8", "HOME": self.folder.name, "TMPDIR": self.folder.name}

    def call(self, recipient, content):
        """What the code shows: what it prints, the value of its last line if that is an expression, its traceback."""
        code = code_in(content)
        if self.confirm and not self.confirm(code):
            return "The user did not allow this code to run."
        begun = f"[WARN] {RESTARTED}\n" if self.lost else ""
        self.lost = True  # if this call is interrupted
        if self.process.running is None and not is_folder(self.folder.name):  # the code has deleted it
            self._move_out()
            self._move_in()
        try:
            _, output = self.process.ask({"code": code}, SECONDS)
            ended = "" if output else NOTHING
        except Ended as reason:
            output, ended = reason.output, f"[ERROR] {reason}; {RESTARTED}"
        self.lost = False
        return begun + output + ("\n" if ended and output and not output.endswith("\n") else "") + ended

    def close(self):
        self.process.close()
        self._move_out()


def is_folder(path, rights=0o700):
    """Whether it is a folder, no link to one, and its owner has these rights."""
    with suppress(OSError):
        mode = os.lstat(path).st_mode
        return stat.S_ISDIR(mode) and mode & rights == rights
    return False


def clear(folder):
    """Deletes a temporary folder, or what the code has put in its place: at a FIFO, cleanup would wait for ever."""
    if not is_folder(folder.name, 0):
        with suppress(OSError):
            os.unlink(folder.name)
    folder.cleanup()


def code_in(content):
    """The code in a call, which is to be plain. Models sometimes write it in JSON, or in a fence."""
    with suppress(ValueError, RecursionError):
        match json.loads(content):
            case {"code": str(code), **others} if not others:
                content = code
    fenced = re.fullmatch(r"\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*", content, re.DOTALL)
    return fenced[1] if fenced else content

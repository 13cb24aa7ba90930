"""A process that stays, and answers one request after the other: this end of child.py.

Whatever the code over there does, a request ends within its time: with a reply, or with Ended. After that the process
is gone, with the group of processes that it has started, and the next request starts a new one. What has left the group
(os.setsid) goes on, unless `without_network` could give it process ids of its own.
"""

import codecs
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

SHOWN = 15_800  # characters of output that are kept; a result of a tool is cut at 16,000, and some are for remarks
LONGEST = 1 << 20  # bytes of a reply
POLL = 0.5  # seconds between two calls of `progress`


class Ended(ValueError):
    """The process is gone: why, and in `output` what it had shown until then."""
    output = ""


class Process:
    """arguments: those of child.py. confined: without a network where `without_network` can have that, and without the
    environment of this program. The process starts with the first request. `progress`: a function that is called again
    and again while a request is under way. What it raises ends that, and the process."""

    progress = staticmethod(lambda: None)

    def __init__(self, *arguments, confined=False, env=None, cwd=None):
        self.command = [sys.executable, str(Path(__file__).with_name("child.py")), *arguments]
        if confined:
            self.command = [*without_network(), sys.executable, "-I", *self.command[1:]]
        self.env, self.cwd, self.number, self.running, self.there = env, cwd, 0, None, False

    def ask(self, request, seconds):
        """The reply, a dict, and as text all that has been shown since the last one."""
        if self.running is None:
            self._start()
        self.number += 1
        output = Output()
        try:
            reply = self._exchange({**request, "id": self.number}, output, seconds)
        except BaseException as error:  # KeyboardInterrupt too
            if isinstance(error, Ended):
                output.add(self.running.stderr.read(LONGEST) or b"")
                error.output = output.text()
            self.close()
            raise
        output.add(self.running.stderr.read(LONGEST) or b"")  # a pipe holds less
        return reply, output.text()

    def close(self):
        if self.running is not None:
            self.running = None
            self._end()

    def _start(self):
        if os.name != "posix":
            raise ValueError("tools that run code: expected Linux or macOS, found a system without process groups")
        self.running = subprocess.Popen(self.command, env=self.env, cwd=self.cwd, bufsize=0, start_new_session=True,
                                        preexec_fn=die_with_parent(),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._end, self.there = weakref.finalize(self, end, self.running), False  # also when this program ends
        for pipe in (self.running.stdin, self.running.stdout, self.running.stderr):
            os.set_blocking(pipe.fileno(), False)

    def _exchange(self, request, output, seconds):
        deadline, reply = time.monotonic() + seconds, b""
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        requests, replies, shown = self.running.stdin, self.running.stdout, self.running.stderr
        with selectors.DefaultSelector() as selector:
            for pipe in (replies, shown):
                selector.register(pipe, selectors.EVENT_READ)
            if self.there:
                selector.register(requests, selectors.EVENT_WRITE)
            while not reply.endswith(b"\n") and len(reply) < LONGEST:
                ready = selector.select(min(deadline - time.monotonic(), POLL))
                self.progress()
                if time.monotonic() >= deadline:
                    raise Ended(f"timed out after {seconds:g} s")
                for pipe in (key.fileobj for key, _ in ready):
                    if pipe is requests:
                        try:
                            unsent = unsent[pipe.write(unsent) or 0 :]
                        except BrokenPipeError:  # nobody reads them any more: replies, too, will be at its end
                            unsent = b""
                        if not unsent:
                            selector.unregister(pipe)
                    elif data := pipe.read(1 << 16):
                        if pipe is shown:
                            output.add(data)
                        elif self.there:
                            reply += data
                        else:  # the empty line of child.py: from now on it can be ended, and may be told what to run
                            self.there = True
                            selector.register(requests, selectors.EVENT_WRITE)
                    elif pipe is shown:
                        selector.unregister(pipe)
                    else:
                        raise Ended(self._how_it_ended())
        with suppress(ValueError, RecursionError):
            found = json.loads(reply)
            if isinstance(found, dict) and found.pop("id", None) == self.number:
                return found
        raise Ended("the process replied out of turn")  # the code has written into this pipe

    def _how_it_ended(self):
        """How the process has ended, which a pipe at its end says a little before."""
        try:
            code = self.running.wait(1)
        except subprocess.TimeoutExpired:
            return "the process closed its connection"
        return f"the process ended with exit code {code}" if code >= 0 else f"the process was ended by signal {-code}"


def die_with_parent():
    """A function for a new process, by which it ends when this one does, even by SIGKILL; None but on Linux (prctl)."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # looked up now: between fork and exec little is safe

    def set_up():
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent had ended before that
            os._exit(1)

    return set_up


def end(process):
    """Kills a process and its group."""
    with suppress(ProcessLookupError, PermissionError):  # (macOS says the second of a group that has ended)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


class Output:
    """Text as it comes, of which beginning and end are kept: however much it is, it takes little memory."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.head, self.tail, self.left_out = "", "", 0

    def add(self, data):
        text = self.decoder.decode(data)
        room = SHOWN * 3 // 4 - len(self.head)
        self.head, self.tail = self.head + text[:room], self.tail + text[room:]
        more = max(0, len(self.tail) - SHOWN // 4)
        self.tail, self.left_out = self.tail[more:], self.left_out + more

    def text(self):
        note = f"\n[{self.left_out} characters left out]\n" if self.left_out else ""
        return self.head + note + self.tail


@cache
def without_network():
    """The command to put before another, so that this one runs without a network: unshare (util-linux), which needs no
    rights where users may have namespaces. [] where it does not work. If it can, it also gives the command a /proc and
    process ids of its own: it is shown no other processes, and its own end with it, however they detach themselves.
    (As root of these namespaces the code could unmount its /proc, and find the machine's below. setpriv, of util-linux
    too, takes that right away.)"""
    program, alone = shutil.which("unshare"), ["--map-root-user", "--net"]
    own = ["--pid", "--fork", "--kill-child", "--mount-proc", "setpriv", "--no-new-privs", "--bounding-set=-all"]
    for options in [own, []] if program else []:
        command = [program, *alone, *options]
        with suppress(OSError, subprocess.TimeoutExpired):
            tried = subprocess.run([*command, sys.executable, "-I", "-c", ""], stdin=subprocess.DEVNULL,
                                   capture_output=True, timeout=10)
            if tried.returncode == 0:
                return command
    return []

"""How a program of this project begins and ends, whatever surrounds it.

    if __name__ == "__main__":          at the top of a program, before all that takes time to import
        import program

        program.begin()

    @program.ends("chat.py")            and at its end
    def main(): ...

Only a mistake in this project ends a program with a traceback. Its exit status is

    0         it has done what it was asked to; or whoever read its output has left, and has read enough
    2         it cannot: one line on standard error says why
    128 + n   signal n has ended it: 130 is Ctrl-C, 143 a polite kill, 129 a terminal that was closed

This file imports little, because nothing protects a program before `begin`.
"""

import io
import os
import signal
import sys
import threading
import warnings
from functools import wraps

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
LEAST, MOST = 10, 9999  # columns or lines of a terminal that something can be shown in
MEMORY = 512 * 2**20  # bytes of addresses with which the kernels can be compiled; with less, libraries abort
LONGEST = 1000  # characters of a complaint
NAME = os.path.basename(sys.argv[0]).replace("__main__.py", os.path.basename(os.path.dirname(sys.argv[0])))
handled = set()  # the signals that nobody before this program has chosen to ignore


class Output(io.TextIOWrapper):
    """Standard output or standard error. What cannot be written to standard output ends the program, wherever it is.
    What cannot be written to standard error is nothing that anybody could be told."""

    lost = False  # whether it has come to its end; then nothing is written any more

    def write(self, text):
        return self._unless_lost(super().write, text)

    def flush(self):
        return self._unless_lost(super().flush)

    def _unless_lost(self, action, *arguments):
        if not self.lost:
            try:
                return action(*arguments)
            except OSError as error:
                self.lost = True
                if self.fileno() == 1:
                    raise Unwritable(error) from None


class Unwritable(BaseException):
    """Nobody can read what the program says. It is no OSError, which would be a file's, and is met on the way."""


def begin():
    """Makes the surroundings what programs expect, and lets a signal end this one without a word."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # `nohup` ignores it
            handled.add(number)
    on_signals(end_at_once)
    sys.excepthook = unfinished
    while (number := os.open(os.devnull, os.O_RDONLY)) < 3:  # it was closed, and the next file would take its place
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0)
    sys.stdin.reconfigure(errors="surrogateescape")
    for name, number in ("stdout", 1), ("stderr", 2):
        stream = getattr(sys, name)
        buffer = stream.buffer if stream else open(number, "wb", closefd=False)
        setattr(sys, name, Output(buffer, stream and stream.encoding, "replace",
                                  line_buffering=number == 2 or os.isatty(number),
                                  write_through=bool(stream and stream.write_through)))  # python -u
    for name in "COLUMNS", "LINES":  # else the terminal is asked
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdecimal() and len(value) < 9 and LEAST <= int(value) <= MOST):
            os.environ.pop(name, None)
    with_memory()


def with_memory():
    """Refuses to begin where `ulimit -v` leaves so little that a library would end this program without a word."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < MEMORY:
        complain(NAME, f"expected at least {MEMORY >> 20} MB of memory (ulimit -v), found {limit >> 20}")
        os._exit(2)


def on_signals(handler):
    for number in handled:
        signal.signal(number, handler)


def end_at_once(number, frame):
    """While nothing has begun, and when all has ended: there is nothing to be put in order."""
    os._exit(128 + number)


def end_in_order(number, frame):
    """Meanwhile: what has begun is ended by its own `finally`. But LLVM calls functions of Python, in which an
    exception would be lost. The signal comes again when they have returned."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # by now that is nobody's mistake
    while frame:
        if frame.f_globals.get("__name__", "").startswith("llvmlite"):
            threading.Timer(0.02, deliver, [number]).start()
            return
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def deliver(number):
    """A signal for the main thread, from another one."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, number)  # so that it leaves a system call, too
    else:
        signal.raise_signal(number)


def unfinished(kind, error, trace):
    """What ends a program while it is imported: packages that are not there, or that the memory is too small for."""
    if not isinstance(error, (ImportError, OSError, MemoryError)):
        return sys.__excepthook__(kind, error, trace)
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause  # what a package says instead of it, about what to do, has many lines
    complain(NAME, error)
    os._exit(2)


def ends(name, unread=0):
    """For the main function of the program `name`, which returns its exit status, or None for 0. What ends it otherwise
    becomes one, too. `unread`: the status where the reader of the output has left."""
    def decorate(main):
        @wraps(main)
        def run(*arguments):
            try:
                try:
                    on_signals(end_in_order)
                    try:
                        status = main(*arguments)
                    except SystemExit as ended:
                        if ended.code:
                            raise
                        status = None  # --help ends like this
                    sys.stdout.flush()
                    return status
                finally:
                    on_signals(end_at_once)
            except KeyboardInterrupt:
                sys.exit(128 + signal.SIGINT)
            except Unwritable as error:
                error = error.args[0]
                if isinstance(error, BrokenPipeError):
                    sys.exit(unread)
                complain(name, f"standard output: {error.strerror}")
            except (ValueError, OSError, ImportError, MemoryError) as error:
                complain(name, error)
            finally:
                try:
                    sys.stdout.flush()
                except Unwritable:  # what has ended the program is its status, not this
                    pass
            sys.exit(2)

        return run

    return decorate


def parser(name, description):
    """An argparse.ArgumentParser for the program `name` that complains in one line."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            self.exit(2, f"{name}: {one_line(message)}\n")

    return Parser(name, description=description)


# ---- What a person is told ------------------------------------------------------------------------------------------

def complain(name, error):
    print(f"{name}: {one_line(sentence(error))}", file=sys.stderr)


def sentence(error):
    """What an error says; one of the operating system as FILE: WHAT, without its number."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"expected its packages (pip install {error.name.partition('.')[0]}), found no {error.name}"
    if isinstance(error, MemoryError):
        return f"expected more memory, found no more of it ({error})" if str(error) else "the memory is full"
    strerror, file = getattr(error, "strerror", None), getattr(error, "filename", None)
    return ": ".join(str(part) for part in (file, strerror) if part is not None) if strerror else str(error)


def one_line(text):
    """text without line breaks, and as files.readable shows it."""
    from files import readable  # here, because `begin` comes before all that takes time to import

    return readable(" ".join(text.split()), LONGEST)

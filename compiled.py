"""Compiled code, and where it is kept: the first use of a kernel takes seconds, every later one finds it on disk.

Numba has a cache of its own, which does not notice when a function that another one uses has changed. This one keeps
the code of all kernels in a directory whose name says what it was compiled from.
"""

import errno
import hashlib
import os
import pickle
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import wraps
from pathlib import Path

import numba
from numba import njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

from checkpoint import expect

ROOM = 8 * 2**20  # bytes, more than all compiled code takes
PUBLISHED = "bfloat16", "mxfp4"  # the forms of the official weights: dense, experts
FASTMATH = {"reassoc", "contract", "nsz"}  # sums in any order, a * b + c in one, 0 of any sign; inf and nan stay


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def cache_name():
    """A directory's name that says where the code comes from: this copy, these sources, this processor. So the old code
    of a changed file is never found again. (Numba would compile anew what a changed file defines, not what uses it.)"""
    here = Path(__file__).resolve().parent
    names = ("checkpoint", "compiled", "simd", "mxfp4", "kernels")
    sources = [(here / f"{name}.py").read_bytes() for name in names]
    target = cpu_target.target_context.codegen().magic_tuple(), numba.config.OPT, numba.config.BOUNDSCHECK
    return f"kernels-{digest(str(here), sys.version, numba.__version__)}-{digest(sources, target)}"


def code_in(file):
    """The code in a file, after its checksum; None if it is missing or damaged."""
    with suppress(OSError):
        data = file.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return data[32:]


def complete(directory, dense, experts):
    """Whether all is there and whole that a chat with weights in these two forms needs. A file lists it."""
    with suppress(OSError, ValueError):
        names = (directory / f"complete-{dense}-{experts}").read_text().split()
        return all(code_in(directory / name) for name in names)
    return False


def private(directory):
    """Whether nobody could have put code there but this user, or who could change this file as well."""
    there, here = directory.stat(), Path(__file__).stat()
    return os.name != "posix" or there.st_uid in (os.getuid(), here.st_uid) and not there.st_mode & 0o002


def cache_directory():
    """(Where compiled code is kept, None), or (None, why it is not kept). It is kept in NUMBA_CACHE_DIR, or without it
    in __pycache__ beside this file. Where that cannot be, it is kept in the user's cache."""
    user, reasons = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "gpt-oss"), []
    for place in (os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__", user):
        try:
            directory = Path(place, cache_name()).expanduser().absolute()
            directory.mkdir(0o755, parents=True, exist_ok=True)
            if not private(directory):
                raise PermissionError(errno.EACCES, "others can write there")
            if not complete(directory, *PUBLISHED):  # else nothing need be written
                with tempfile.TemporaryFile(dir=directory) as file:
                    file.write(bytes(ROOM))
            return directory, None
        except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
            reasons.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    return None, "; ".join(reasons)


DIRECTORY, UNKEPT = cache_directory()
kept, lost = set(), set()  # names of the files that this process has read or written, and of those that it could not


class CompiledCode(NullCache):
    """The compiled forms of one function, a file for each list of argument types: what Numba calls its cache.

    Code whose file is missing or damaged is compiled anew; the checksum is against accidents, not against malice. Code
    that cannot be written is not kept."""

    def __init__(self, function):
        self.name = f"{function.__module__}.{function.__name__}"

    def load_overload(self, arguments, context):
        context.refresh()  # (must have been called before code is loaded)
        name = f"{self.name}-{digest(arguments)}"
        with suppress(Exception):
            result = CompileResult._rebuild(context, *pickle.loads(code_in(DIRECTORY / name)))
            kept.add(name)
            return result

    def save_overload(self, arguments, result):
        name = f"{self.name}-{digest(arguments)}"
        (kept if write(name, dumps(result._reduce())) else lost).add(name)


def write(name, code):
    """Whether a file could be written, whole or not at all."""
    partial = DIRECTORY / f"{name}.{os.urandom(4).hex()}"  # (two containers can have the same process ids)
    try:
        partial.write_bytes(hashlib.sha256(code).digest() + code)
        os.replace(partial, DIRECTORY / name)
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            partial.unlink()


def all_compiled(dense, experts):
    """Whether DIRECTORY has the code of all kernels that a chat needs whose weights have these forms."""
    return DIRECTORY is not None and complete(DIRECTORY, dense, experts)


def mark_all_compiled(dense, experts):
    """From now on all_compiled is true, if all could be kept. What earlier versions left is deleted, and what was being
    written when its process was killed, if it has not changed for a day."""
    if DIRECTORY is None or lost:
        return
    with suppress(OSError):
        (DIRECTORY / f"complete-{dense}-{experts}").write_text("\n".join(sorted(kept)))
        older = set(DIRECTORY.parent.glob(DIRECTORY.name.rpartition("-")[0] + "-*")) - {DIRECTORY}
        for other in [*older, *DIRECTORY.glob("*.*.*")]:
            if time.time() - other.stat().st_mtime > 24 * 3600:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def compiler(**options):
    """numba.njit with these options and FASTMATH, whose code is kept (unless a file has changed since the import)."""
    def decorate(function):
        dispatcher = njit(fastmath=FASTMATH, **options)(function)
        if DIRECTORY and DIRECTORY.name == cache_name():
            dispatcher._cache = CompiledCode(function)
        return dispatcher

    return decorate


jit, parallel_jit = compiler(), compiler(parallel=True)
inline_jit = compiler(forceinline=True)  # for what is so small that a call would be felt


# ---- Numba's threads ------------------------------------------------------------------------------------------------
# They come from OpenMP where there is such a library, and else from Numba's own "workqueue". Two Python threads at once
# in the latter end the process. So does the former in a process that was forked after its threads had begun.

class Turn:
    """One Python thread at a time; a fork has its own turn, and none where it would be its end."""
    lock, lost = threading.RLock(), False


def after_fork():
    with suppress(ValueError):  # no thread has begun yet: then the fork can have its own
        Turn.lost = numba.threading_layer() == "omp" and sys.platform == "linux"
    Turn.lock = threading.RLock()  # another thread may have held the old one


if hasattr(os, "register_at_fork"):  # not so on Windows, which has no fork
    os.register_at_fork(after_in_child=after_fork)


def in_turn(operation):
    """The operation, whose compiled code runs in Numba's threads. RuntimeError in a fork that has lost them."""
    @wraps(operation)
    def alone(*args):
        expect(not Turn.lost, RuntimeError, "Numba's threads", 'a process of its own (multiprocessing: "spawn"), or '
               "a fork before the first token", "a fork after it")
        with Turn.lock:
            return operation(*args)

    return alone

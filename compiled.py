"""Compiled code, and where it is kept: the first use of a kernel takes seconds, every later one finds it on disk.

Numba has a cache of its own, which does not notice when a function that another one uses has changed. This one keeps
the code of all kernels in a directory whose name says what it was compiled from.
"""

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


def complete(dense, experts):
    """The name of a file in the cache that says: all is compiled that a chat with weights in these two forms needs."""
    return f"complete-{dense}-{experts}"


def cache_directory():
    """Where compiled code is kept: in NUMBA_CACHE_DIR, or without it in __pycache__ beside this file. Where that cannot
    be written, in the user's cache; else None. (A directory for all users could hold what somebody else put there.)"""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "gpt-oss")
    for place in (os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__", user):
        with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
            directory = Path(place, cache_name()).expanduser().absolute()
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / complete(*PUBLISHED)).exists():  # then it need not be written
                tempfile.TemporaryFile(dir=directory).close()
            return directory


DIRECTORY = cache_directory()


class CompiledCode(NullCache):
    """The compiled forms of one function, a file for each list of argument types: what Numba calls its cache.

    Code whose file is missing or damaged is compiled anew; the checksum is against accidents, not against malice. Code
    that cannot be written is not kept."""

    def __init__(self, function):
        self.name = f"{function.__module__}.{function.__name__}"

    def load_overload(self, arguments, context):
        context.refresh()  # (must have been called before code is loaded)
        with suppress(Exception):
            data = (DIRECTORY / f"{self.name}-{digest(arguments)}").read_bytes()
            if hashlib.sha256(data[32:]).digest() == data[:32]:
                return CompileResult._rebuild(context, *pickle.loads(data[32:]))

    def save_overload(self, arguments, result):
        file, code = DIRECTORY / f"{self.name}-{digest(arguments)}", dumps(result._reduce())
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        with suppress(OSError):
            try:
                partial.write_bytes(hashlib.sha256(code).digest() + code)
                os.replace(partial, file)
            finally:
                partial.unlink(missing_ok=True)


def all_compiled(dense, experts):
    """Whether DIRECTORY has the code of all kernels that a chat needs whose weights have these forms."""
    return DIRECTORY is not None and (DIRECTORY / complete(dense, experts)).exists()


def mark_all_compiled(dense, experts):
    """From now on all_compiled is true. What earlier versions left is deleted, if it has not changed for a day."""
    with suppress(OSError, TypeError):  # TypeError: there is no DIRECTORY
        (DIRECTORY / complete(dense, experts)).touch()
        for other in set(DIRECTORY.parent.glob(DIRECTORY.name.rpartition("-")[0] + "-*")) - {DIRECTORY}:
            if time.time() - other.stat().st_mtime > 24 * 3600:
                shutil.rmtree(other, ignore_errors=True)


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

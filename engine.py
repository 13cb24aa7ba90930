"""An engine on this machine: gptoss.py with a memory, so that what was read once is not read again.

    prompt -> the cache with the longest beginning of it -> the rest is read -> ids, which that cache then holds too

A program that talks to several people, or an agent that begins each task with the same 10,000 tokens, comes back to
beginnings that it had before. So several prompts' keys and values are kept, and on request on disk as well:

    FOLDER/0a1b....kv     a line of JSON: format, model, tokens, shape, dtype
                          the ids, int32 [n]
                          keys and values, layer by layer [2, G, n, D] (letters as in gptoss.py)
                          CRC-32 of all before it, four bytes

No code is stored, so a file can do no more than be wrong; and what does not fit is not used.
"""

import hashlib
import json
import math
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

import gptoss
from checkpoint import Adapted, CheckpointError, expect
from gptoss import CHUNK

FORMAT = "gpt-oss prompt, version 1"  # a new one whenever keys and values are computed or stored in another way
LEAST = 512  # new tokens for which a file is written


class LocalEngine:
    """A model on this machine (an engine, see conversation.py). Of a prompt it reads only what differs from what a
    cache holds. caches: how many prompts it keeps at most, each of any length. folder: where it keeps long ones on disk
    too (None: nowhere). note: a function that is told, in a sentence, which file could not be used or written.

    `progress`: a function that is called between the chunks of a long prompt. What it raises ends the reading, and what
    was read until then stays read. `cache`: the one in use. `temperature`: the one that the checkpoint asks for."""

    progress = staticmethod(lambda: None)

    def __init__(self, model, caches=1, folder=None, note=lambda text: None):
        self.model, self.context = model, model.config.max_position_embeddings
        self.temperature = float(model.config.do_sample)
        self.cache, self.held = model.new_cache(), []  # held: the ids of the prompt and reply that are under way
        self.caches, self.others = caches, []  # others: caches, the one that was used last at the end
        self.files = None if folder is None else PromptFiles(folder, model, note)

    def generate(self, tokens, **sampling):
        """See conversation.py. Raises ValueError, at once, for arguments that gptoss.generate refuses. What an earlier
        call gave ends here, because the cache may be this call's now."""
        check_unchanged(self.model.files)
        tokens = list(tokens)
        known = self._choose(tokens[:-1])  # the last id is read for its logits
        gptoss.generate(self.model, tokens[known:], cache=self.cache, **sampling)  # raises, or does nothing yet
        self.cache.ids = self.held = tokens  # (not before: only now is all that the cache holds a beginning of these)
        return self._steps(tokens, sampling)

    def _steps(self, held, sampling):
        while len(held) - self.cache.length > CHUNK and self.held is held:
            self.model(held[self.cache.length :][:CHUNK], self.cache, logits_to_keep=1)
            self.progress()
        if self.held is not held:
            return
        ids = gptoss.generate(self.model, held[self.cache.length :], cache=self.cache, **sampling)
        first = True
        while self.held is held and (id := next(ids, None)) is not None:
            if first and self.files:
                self.files.keep(held, self.cache)
            first = False
            held.append(id)
            yield id

    def _choose(self, tokens):
        """Makes `cache` the one for this prompt, and returns how many of its tokens that holds.

        It is the cache with the longest beginning of the prompt, rewound. But if more would be lost than kept (the
        beginning may be the system message that all prompts share), another takes a copy of that beginning: a new
        one, or the one that was not used for the longest time.

        Each cache knows its ids, the first `length` of which it has read. That holds after every line here and in
        `copy`, so an exception anywhere, also by Ctrl-C or for want of memory, leaves no cache that is taken for
        another one."""
        self.held = []  # what an earlier call gave ends
        self.others = [*(cache for cache in self.others if cache is not self.cache), self.cache]
        if self.files:
            path, n = self.files.best(tokens)
            if n > max(shared(cache, tokens) for cache in self.others):
                place = self._place()
                self.files.read(path, place)
                self.others.append(place)
        best = max(reversed(self.others), key=lambda cache: shared(cache, tokens))
        known = shared(best, tokens)
        if 2 * known < best.length and (place := self._place()) is not best:
            copy([layer[:, :, :known] for layer in best.layers], place, tokens[:known])
            best = place
        self.others, self.cache = [cache for cache in self.others if cache is not best], best
        return best.rewind(known)

    def _place(self):
        """A cache to be overwritten."""
        return self.model.new_cache() if len(self.others) < self.caches else self.others.pop(0)


def check_unchanged(files):
    """Raises CheckpointError if weights that are mapped were written to: then the model is half of another one. files:
    what os.stat said of each. (What takes the place of a file does no harm: the old one stays as long as it is mapped.)
    """
    for path, then in files.items():
        with suppress(OSError):
            now = os.stat(path)
            same = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns) or now.st_ino != then.st_ino
            expect(same, CheckpointError, path, "the weights that were loaded", "a file that was changed "
                   "since then (start again)")


def common(ids, tokens):
    """How many ids two lists have in common at their beginning."""
    return next((n for n, (a, b) in enumerate(zip(ids, tokens, strict=False)) if a != b), min(len(ids), len(tokens)))


def shared(cache, tokens):
    """How many ids at the beginning of `tokens` a cache holds."""
    return common(getattr(cache, "ids", [])[: cache.length], tokens)


def copy(layers, cache, ids):
    """Fills a cache with keys and values, one [2, G, n, D] for each layer, which are those of n ids."""
    cache.rewind(0)
    cache.ids = ids
    for i, layer in enumerate(layers):
        cache.extend(i, len(ids))[:] = layer
    cache.length = len(ids)


# ---- On disk --------------------------------------------------------------------------------------------------------

class PromptFiles:
    """The files of a folder, those of this model and this format. most: bytes that they may take together; beyond
    that, those that were not used for the longest time are deleted."""

    def __init__(self, folder, model, note, most=16e9):
        self.folder, self.model, self.note, self.most = Path(folder), model, note, most
        self.mark, self.ids = fingerprint(model), {}  # ids: of each file {path: list}
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*.part"):  # of a program that was killed; another one may be writing now
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        for path in sorted(self.folder.glob("*.kv")):
            try:
                with self._open(path) as file:
                    self.ids[path] = self._head(path, file)[1].tolist()
            except (OSError, ValueError) as error:
                note(f"{error}; it is not used")

    def _open(self, path):
        """A file to be read; not a pipe or a device, which could wait for ever or have no end."""
        expect(path.is_file(), ValueError, path, "a prompt's keys and values", "no such file, or a device")
        return open(path, "rb")

    def best(self, tokens):
        """(path, n): the file with the longest beginning of a prompt, n tokens."""
        shared = {path: common(ids, tokens) for path, ids in self.ids.items()}
        path = max(shared, key=shared.get, default=None)
        return path, shared.get(path, 0)

    def read(self, path, cache):
        """Fills a cache. It is empty if the file cannot be used after all."""
        cache.rewind(0)
        try:
            with self._open(path) as file:
                (shape, dtype), ids, sum = self._head(path, file)
                layers = []
                for _ in cache.layers:
                    data = file.read(math.prod(shape) * dtype.itemsize)
                    sum = zlib.crc32(data, sum)
                    layers.append(np.frombuffer(data, dtype).reshape(shape))
                expect(file.read() == sum.to_bytes(4, "little"), ValueError, path, "its checksum", "another")
            copy(layers, cache, ids.tolist())
            with suppress(OSError):  # of a folder that cannot be written to
                os.utime(path)  # it was used
        except (OSError, ValueError) as error:
            self.note(f"{error}; it is not used")
            del self.ids[path]

    def keep(self, ids, cache):
        """Writes what a cache holds, if enough of it is new: half as much again as a file has, so that a conversation
        that grows is not written over and over."""
        n = cache.length
        path, known = self.best(ids[:n])
        if n - known < max(LEAST, known // 2):
            return
        try:
            self._write(ids[:n], [layer[:, :, :n] for layer in cache.layers])
        except OSError as error:
            self.note(f"{self.folder}: expected room for a prompt of {n} tokens, found {error.strerror}")

    def _write(self, ids, layers):
        head = self._header(len(ids))
        data = np.array(ids, "<i4")
        path = self.folder / f"{hashlib.sha256(head + data.tobytes()).hexdigest()[:32]}.kv"
        if data.nbytes + sum(layer.nbytes for layer in layers) > self.most:
            return
        beside = self.folder / f".{path.stem}.{os.getpid()}.part"
        try:
            beside.unlink(missing_ok=True)  # of a program that was killed and had the same number
            with open(beside, "xb") as file:
                checksum = 0
                for part in (head, data, *layers):
                    part = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
                    file.write(part)
                    checksum = zlib.crc32(part, checksum)
                file.write(checksum.to_bytes(4, "little"))
                file.flush()
                os.fsync(file.fileno())  # before it gets its name: a file with a name is whole
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        self._forget(path, ids)
        self.ids[path] = ids

    def _forget(self, path, ids):
        """Deletes the files whose prompts are beginnings of the new one, and the oldest beyond the bound."""
        for other in [other for other, held in self.ids.items() if other != path and held == ids[: len(held)]]:
            self._delete(other)
        with suppress(OSError):
            files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in self.folder.glob("*.kv"))
            total = sum(size for _, size, _ in files)
            for _, size, file in files:
                if total > self.most and file != path:
                    self._delete(file)
                    total -= size

    def _delete(self, path):
        self.ids.pop(path, None)
        with suppress(OSError):
            path.unlink()

    def _header(self, n):
        """The first line of a file for n tokens."""
        layer = self.model.new_cache().layers[0]
        shape = [2, layer.shape[1], n, layer.shape[3]]
        head = {"format": FORMAT, "model": self.mark, "tokens": n, "layers": len(self.model.layers), "shape": shape,
                "dtype": layer.dtype.newbyteorder("<").str}
        return json.dumps(head).encode() + b"\n"

    def _head(self, path, file):
        """((shape, dtype) of a layer, ids, CRC-32 so far), if this is a whole file of this model. Or ValueError."""
        line = file.readline(1000)
        try:
            said = json.loads(line)
            n = int(said["tokens"])
            expected = json.loads(self._header(n))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise ValueError(f"{path}: expected a prompt's keys and values, found another file") from None
        for name, value in expected.items():
            expect(said.get(name) == value, ValueError, f"{path}: {name}", str(value), str(said.get(name)))
        shape, dtype = expected["shape"], np.dtype(expected["dtype"])
        size = len(line) + 4 * n + expected["layers"] * math.prod(shape) * dtype.itemsize + 4
        expect(os.fstat(file.fileno()).st_size == size, ValueError, path, f"{size:,} bytes",
               f"{os.fstat(file.fileno()).st_size:,}")
        data = file.read(4 * n)
        return (shape, dtype), np.frombuffer(data, "<i4"), zlib.crc32(data, zlib.crc32(line))


def fingerprint(model):
    """A hash by which a model is known again: its configuration, and of each tensor the kind, the shape, and the first
    and last entries along every axis but the last.

    Names and dates of files would change with a copy and could stay with a change; to read all weights would take as
    long as to read a prompt. Training changes a matrix everywhere, so its corners say enough. Only an adapter, which is
    small, is taken whole: of an expert that no token came to, all of B is still zero."""
    sum = hashlib.sha256(repr(model.config).encode())

    def add(value):
        if isinstance(value, Adapted):
            sum.update(value.A.tobytes() + value.B.tobytes())
        if isinstance(value, tuple):  # a Layer, or the parts of a quantized or an adapted matrix
            for part in value:
                add(part)
            return
        corners = value[tuple(slice(None, None, max(1, n - 1)) for n in value.shape[:-1])]
        sum.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(corners).tobytes())

    for value in (model.embedding, *model.layers, model.norm, model.unembedding):
        add(value)
    return sum.hexdigest()[:32]

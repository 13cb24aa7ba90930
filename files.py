"""How files are read that anybody may have written, and how it is said what is wrong with them: in one sentence.

What is no regular file is not opened, what is too large is not read, and what is said fits into a line of a terminal.
"""

import json
import math
import os
import stat
from numbers import Integral, Real

JSON_BYTES = 10_000_000  # at most. Python's objects may take thirty times as much
BEGINNINGS = {  # what is no file of ours, by how it begins
    b"GGUF": "GGUF, the format of llama.cpp",
    b"version https://git-lfs": "a git-lfs pointer to it (`git lfs pull` brings it)",
}


# ---- Complaints -----------------------------------------------------------------------------------------------------

class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which file, which key or tensor, what was expected and what was found."""


def expect(ok, error, where, expected, found):
    """Raises error("WHERE: expected EXPECTED, found FOUND") unless `ok`: the form of every complaint in this project. A
    `found` that is no text is shown as its repr."""
    if not ok:
        found = found if isinstance(found, str) else repr(found)
        raise error(f"{readable(where)}: expected {readable(expected)}, found {readable(found)}")


def readable(text, most=300):
    """A text as a part of a line: escapes for what a terminal would obey, and of a long one not the middle."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def expect_number(value, kind, low, high, error, where, found=None):
    """`value` as an int or a float, whichever `kind` is, if it is such a number from low to high (inf: any)."""
    noun, digits = ("an integer", "d") if kind is int else ("a number", "g")
    most = f"of at least {low:{digits}}" if high == math.inf else f"from {low:{digits}} to {high:{digits}}"
    number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    expect(number and low <= value <= high and value < 1e308, error, where, f"{noun} {most}", found or repr(value))
    return kind(value)


# ---- Files ----------------------------------------------------------------------------------------------------------

def what_is(path):
    """What there is by that name: "a file", or as what it begins; "a directory"; or why there is nothing to be read. A
    pipe would wait for its writer and a device may have no end: they are not opened."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                beginning = file.read(40)
            return next((name for first, name in BEGINNINGS.items() if beginning.startswith(first)), "a file")
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        return "no such file" if isinstance(error, FileNotFoundError | ValueError) else error.strerror
    return "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"


def read_file(path, most=JSON_BYTES, error=CheckpointError):
    """The bytes of a file that has at most `most` of them."""
    found = what_is(path)
    expect(found == "a file", error, path, "a file", found)
    data = bytearray()
    with open(path, "rb") as file:  # in pieces: its size may be told wrongly, and read(most) takes memory for `most`
        while len(data) <= most and (piece := file.read(2**16)):
            data += piece
    expect(len(data) <= most, error, path, f"a file of at most {most:,} bytes", "more")
    return bytes(data)


def read_json(path, header=None, most=JSON_BYTES, error=CheckpointError):
    """The object in a file of JSON, or in the header of a file of tensors. No key stands there twice, because some
    programs take the first value, and some the last. And there is no half of a surrogate pair."""
    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    data, kind = (read_file(path, most, error), "a") if header is None else (header, "a header that is a")
    try:  # (-0 is an integer to Python alone)
        value = json.loads(data.decode(), object_pairs_hook=once, parse_int=lambda n: -0.0 if n == "-0" else int(n))
        json.dumps(value, ensure_ascii=False).encode()  # where half a pair is refused
        found = type(value).__name__
    except (ValueError, RecursionError) as problem:
        value, found = None, f"something else ({problem})"
    expect(isinstance(value, dict), error, path, f"{kind} JSON object", found)
    return value

"""Chapter 9, the files: docs/09-the-files.md

Check what you wrote: python exercises/check.py read_safetensors"""

import json

import numpy as np


def read_safetensors(path):
    """The tensors of a safetensors file.

    path: where the file is. -> {name: array}, each with the shape that the file gives it. Types: BF16 as bit patterns
    uint16, U8 as uint8, F32 as float32.

    - The first eight bytes are a whole number, little-endian: the length of the header.
    - The header follows, JSON in that many bytes: {name: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}}.
      One key, "__metadata__", may be there and is no tensor.
    - The rest is data. The offsets count from where the header ends; numbers are little-endian, rows one after another.

    Hint: int.from_bytes(..., "little"), np.frombuffer(..., "<u2")."""
    raise NotImplementedError

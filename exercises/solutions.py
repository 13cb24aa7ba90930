"""One right answer to each exercise. Those that the project has are imported from it; the other five stand here.

They are written to be read, as short as they can be and still right. The project's own versions of some of them are
longer, because they also say what is wrong with their input: harmony.render, checkpoint.map_safetensors.
"""

import json  # noqa: I001
import math
from collections import Counter
from pathlib import Path

import numpy as np
import regex

from checkpoint import E2M1, E8M0, MXFP4, dequantize
from gptoss import attention, experts, filter_logits, rms_norm, rope_frequencies, rotate
from gptoss import route, softmax, swiglu

# ---- Chapter 1: text to tokens --------------------------------------------------------------------------------------

def bpe(piece, ranks):
    """The ids of one piece of text, given as bytes, by byte-pair encoding. ranks: {bytes of a token: its id}.

    The piece begins as single bytes. Of all neighbours that together are a token, those merge whose token has the
    lowest id, the first of them if there are several; and so on until no two neighbours are a token."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [(ranks.get(a + b, math.inf), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
        rank, i = min(pairs, default=(math.inf, 0))
        if rank == math.inf:
            return [ranks[part] for part in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def encode(text, pattern, ranks):
    """The ids of a text: the pattern cuts it into pieces, and no token crosses a cut."""
    return [id for piece in regex.findall(pattern, text) for id in bpe(piece.encode(), ranks)]


def train_bpe(pieces, merges):
    """Learns a vocabulary from {piece: how often it occurs}, pieces as bytes -> ranks {bytes of a token: its id}.

    The first 256 tokens are the single bytes. Then, `merges` times, the two neighbours that occur most often become a
    token; of equally frequent ones those that were seen first. It ends early when no neighbours are left."""
    tokens = [bytes([byte]) for byte in range(256)]
    for _ in range(merges):
        ranks = {token: id for id, token in enumerate(tokens)}
        pairs = Counter()
        for piece, count in pieces.items():
            ids = bpe(piece, ranks)
            for pair in zip(ids, ids[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        a, b = max(pairs, key=pairs.get)
        tokens.append(tokens[a] + tokens[b])
    return {token: id for id, token in enumerate(tokens)}


# ---- Chapter 2: a conversation --------------------------------------------------------------------------------------

def render(messages, tokenizer):
    """The ids of a conversation, up to <|start|>assistant, where the model goes on. Contents are text.

    Thoughts before the first answer are left out if an answer is the last that the assistant said."""
    special, ids = tokenizer.special_tokens, []
    said = [message for message in messages if message.role == "assistant"]
    if said and said[-1].channel == "final":  # in the middle of tool calls the model still needs its thoughts
        answer = next(i for i, message in enumerate(messages) if message.channel == "final")
        messages = [message for i, message in enumerate(messages) if message.channel != "analysis" or i > answer]
    for message in messages:
        ids += [special["<|start|>"], *tokenizer.encode(message.name if message.role == "tool" else message.role)]
        if message.recipient not in (None, "all"):
            ids += tokenizer.encode(f" to={message.recipient}")
        if message.channel:
            ids += [special["<|channel|>"], *tokenizer.encode(message.channel)]
        if message.content_type:  # "<|constrain|>json"
            kind = message.content_type.removeprefix("<|constrain|>")
            ids += [*tokenizer.encode(" "), special["<|constrain|>"], *tokenizer.encode(kind)]
        ids += [special["<|message|>"], *tokenizer.encode(message.content)]
        calls = message.role == "assistant" and message.recipient
        ids += [special["<|call|>"] if calls else special["<|end|>"]]
    return ids + [special["<|start|>"], *tokenizer.encode("assistant")]


# ---- Chapter 7: four bits -------------------------------------------------------------------------------------------

EVEN_FIRST = np.array([0, 2, 4, 6, 1, 3, 5, 7], np.uint8)  # codes of 0 1 2 4 0.5 1.5 3 6: argmin takes the first of two


def quantize(x):
    """float32 [M, N] -> MXFP4. Each 32 neighbours share the scale 2^(floor(log2(their largest |x|)) - 2)."""
    blocks = x.reshape(len(x), -1, 32)  # [M, N/32, 32]
    largest = np.abs(blocks).max(axis=-1)  # [M, N/32]
    _, exponent = np.frexp(largest)  # largest = m 2^exponent with 0.5 <= m < 1, so floor(log2(largest)) = exponent - 1
    exponent = exponent - 1 - 2  # 4 is the largest power of two that e2m1 has: the largest |x| comes to 4 ... 8
    scales = np.where(largest > 0, np.clip(exponent + 127, 0, 254), 0).astype(np.uint8)
    steps = np.abs(blocks) / E8M0[scales][..., None]
    distance = np.abs(steps[..., None] - E2M1[EVEN_FIRST])  # [M, N/32, 32, 8]; nothing is nearer to 7 than 6
    codes = EVEN_FIRST[distance.argmin(axis=-1)] + 8 * (blocks < 0).astype(np.uint8)
    return MXFP4(codes[..., 0::2] | codes[..., 1::2] << 4, scales)


# ---- Chapter 9: the files -------------------------------------------------------------------------------------------

DTYPES = {"BF16": "<u2", "F32": "<f4", "U8": "u1"}  # NumPy has no bf16: its bit patterns are kept


def read_safetensors(path):
    """{name: array} of the tensors in a safetensors file; bf16 as uint16 bit patterns."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]  # counted from the end of the header
        values = np.frombuffer(data[8 + size + begin : 8 + size + end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors

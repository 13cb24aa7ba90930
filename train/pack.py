"""Packs the experts of a fine-tuned checkpoint: from bf16, float16 or float32 to MXFP4, as gpt-oss was published.

    python -m train.pack IN OUT

IN is a directory in the Hugging Face layout, as transformers saves it. All else in it stays what it is, bit for bit:
the other tensors in whatever format they have, and experts that are packed already. The error that packing made is
said layer by layer. One expert is in memory at a time, and a few MB of it as float32.

What was interrupted goes on where it was when the same command is given again. Until it is whole, OUT has no
config.json, without which no program takes it for a checkpoint.

    E  num_local_experts      N  inputs of a matrix       M  its outputs
"""

if __name__ == "__main__":
    import program

    program.begin()

import mmap  # noqa: I001
import os
import re
import shutil
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import program
from bench.random_checkpoint import MXFP4_EXPERTS, atomic_write, bytes_of, progress_bar
from bench.random_checkpoint import write_index, write_json, write_safetensors
from checkpoint import FLOATS, MXFP4, Checkpoint, CheckpointError, dequantize, expect, read_config, read_json
from checkpoint import bf16_to_float32, read_tensors
from train.export import quantize_mxfp4

SHARD = 5_000_000_000  # bytes of tensors in a file at most, unless one matrix has more: as transformers cuts it
SLAB = 2**17  # weights that are packed at a time by each thread: what they become on the way fits into a level-2 cache
PIECE = 2**24  # bytes that are copied at a time
UNFINISHED = "unfinished.json"  # in OUT: what is being packed there, and which of its files are whole
TEXTS = ("", ".json", ".jinja", ".md", ".txt")  # files to copy; others are weights or what a training left
EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj")


class Error(NamedTuple):
    """What packing did to some weights. Sums, so that those of parts can be added up."""
    squared: float = 0.0  # sum of squares of the errors
    weights: float = 0.0  # and of the weights
    blocks: int = 0
    exact: int = 0  # blocks without an error
    largest: float = 0.0  # of the errors

    def __add__(self, other):
        return Error(*(a + b for a, b in zip(self[:4], other, strict=False)), max(self.largest, other.largest))

    @property
    def relative(self):
        """Root mean square of the errors, over that of the weights."""
        return (self.squared / self.weights) ** 0.5 if self.weights else 0.0


@program.ends("python -m train.pack")
def main():
    parser = program.parser("python -m train.pack", "Pack the experts of a fine-tuned checkpoint in MXFP4.")
    parser.add_argument("source", metavar="IN", help="directory with bf16, float16 or float32 experts")
    parser.add_argument("target", metavar="OUT", help="directory to write; what was interrupted there goes on")
    args = parser.parse_args()
    torch.set_num_threads(1)  # pack has threads of its own, which need not wait for each other after each operation
    print(table(pack(args.source, args.target, progress=True)))


# ---- Files ----------------------------------------------------------------------------------------------------------

def pack(source, target, *, progress=False):
    """Packs checkpoint directory `source` into `target`. Returns the Error of each matrix that was packed,
    {name: Error}. Raises CheckpointError or OSError, and leaves a target of which no program thinks that it is whole.
    """
    source, target = Path(source), Path(target)
    config, layout = read_config(source)
    expect(layout == "hf", CheckpointError, source, "the Hugging Face layout", "original/, which is packed always")
    read_tensors(source, config, layout)  # what is missing or misshapen is said now
    checkpoint = Checkpoint(source)
    shards = plan(checkpoint)
    state = begin(source, target, checkpoint, shards)
    missing = {file: tensors for file, tensors in shards.items() if file not in state["files"]}
    total = sum(bytes_of(*tensor) for tensors in missing.values() for tensor in tensors.values())
    free = shutil.disk_usage(target).free
    expect(total <= free, CheckpointError, target, f"room for {total / 1e9:.1f} GB", f"{free / 1e9:.1f} GB")

    with progress_bar() if progress else nullcontext() as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        advance = partial(bar.advance, bar.add_task("packing", total=total)) if bar else None
        for file, tensors in missing.items():
            errors = {}
            write_safetensors(target / file, tensors, pieces(checkpoint, tensors, errors, pool), advance)
            state["files"][file] = {"bytes": (target / file).stat().st_size, "errors": errors}
            write_json(target / UNFINISHED, state)
    if len(shards) > 1:
        write_index(target, shards)
    for path in texts(source):
        with atomic_write(target / path.name) as out:
            out.write(path.read_bytes())
    write_json(target / "config.json", read_json(source / "config.json") | {"quantization_config": MXFP4_EXPERTS})
    (target / UNFINISHED).unlink()
    found = {name: Error(*error) for file in shards for name, error in state["files"][file]["errors"].items()}
    return {name: found[name] for name in checkpoint.tensors if name in found}


def plan(checkpoint):
    """The files to write, {file name: {tensor name: (dtype name, shape)}}, in the order in which they are read."""
    groups, room = [{}], SHARD
    for name, (file, dtype, shape, _) in checkpoint.tensors.items():
        tensors = {name: (dtype, shape)}
        if EXPERTS.fullmatch(name):
            where = f"{file}: {name}"
            known = dtype in FLOATS and len(shape) == 3  # else of a layer that the config does not have
            expect(known, CheckpointError, where, f"{' or '.join(FLOATS)} [E, N, M]", f"{dtype} {list(shape)}")
            E, N, M = shape
            expect(N % 32 == 0, CheckpointError, where, "inputs in a multiple of 32, the MXFP4 block", f"{N} of them")
            tensors = {f"{name}_blocks": ("U8", (E, M, N // 32, 16)), f"{name}_scales": ("U8", (E, M, N // 32))}
            twice = [packed for packed in tensors if packed in checkpoint.tensors]
            expect(not twice, CheckpointError, where, "each matrix once", f"it packed as well, as {twice}")
        size = sum(bytes_of(*tensor) for tensor in tensors.values())
        if groups[-1] and size > room:
            groups.append({})
            room = SHARD
        groups[-1] |= tensors
        room -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{j:05}-of-{len(groups):05}.safetensors": group for j, group in enumerate(groups, 1)}


def texts(source):
    """The small files that belong to a checkpoint: its tokenizer, its template, its licence."""
    own = {"config.json", "model.safetensors.index.json", UNFINISHED}
    return [path for path in sorted(source.iterdir()) if path.is_file() and path.suffix in TEXTS
            and path.name not in own and not path.name.startswith(".")]


def begin(source, target, checkpoint, shards):
    """Makes sure that `target` is new, or the beginning of packing this very source. Returns what is there: its
    "files" {file name: {"bytes", "errors"}}."""
    files = {Path(file): None for file, *_ in checkpoint.tensors.values()}
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    shards = {file: list(tensors) for file, tensors in shards.items()}
    state = {"source": files, "shards": shards, "files": {}}
    if os.path.lexists(target):
        expect(target.is_dir(), CheckpointError, target, "a directory", "a file")
        expect(not os.path.samefile(source, target), CheckpointError, target, "another directory than IN", "the same")
    target.mkdir(parents=True, exist_ok=True)
    if all(path.name == UNFINISHED + ".partial" for path in target.iterdir()):
        write_json(target / UNFINISHED, state)
    expect((target / UNFINISHED).is_file(), CheckpointError, target, "a new or empty directory", "one with other files")
    found = read_json(target / UNFINISHED)
    same = all(found.get(key) == state[key] for key in ("source", "shards"))
    expect(same, CheckpointError, target, f"nothing, or what packing {source} left when it was interrupted",
           "what packing another checkpoint left (delete it to begin anew)")
    for file, entry in found["files"].items():
        if (target / file).is_file() and (target / file).stat().st_size == entry["bytes"]:
            state["files"][file] = entry
    for partial_file in target.glob("*.partial"):
        partial_file.unlink()
    return state


# ---- Weights --------------------------------------------------------------------------------------------------------

def pieces(checkpoint, tensors, errors, pool):
    """The bytes of these tensors of OUT in their order. The Error of each packed matrix goes into `errors` by name."""
    for name in tensors:
        matrix = name.removesuffix("_blocks").removesuffix("_scales")
        if name in checkpoint.tensors:
            *_, data = checkpoint.tensors[name]
            for begin in range(0, len(data), PIECE):
                yield data[begin : begin + PIECE]
                let_go(data)
        elif name.endswith("_blocks"):
            file, _, shape, _ = checkpoint.tensors[matrix]
            weight = checkpoint.view(matrix, "BF16", shape)  # or another of FLOATS
            errors[matrix], scales = Error(), []
            for e in range(len(weight)):
                blocks, part, error = pack_expert(weight[e], f"{file}: {matrix}", pool)
                yield blocks
                let_go(weight)
                scales.append(part)
                errors[matrix] += error
        else:
            yield from scales


def let_go(view):
    """Takes what was read of a mapped file out of this process's memory, where it would pile up to the whole file."""
    while isinstance(view, np.ndarray):
        view = view.base
    if isinstance(view, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # (Windows has no such advice)
        view.madvise(mmap.MADV_DONTNEED)


def pack_expert(weight, where, pool):
    """A matrix [N, M] in one of FLOATS -> MXFP4 blocks [M, N/32, 16] and scales [M, N/32], and the Error."""
    N, M = weight.shape
    blocks, scales = np.empty((M, N // 32, 16), np.uint8), np.empty((M, N // 32), np.uint8)
    step = max(32, SLAB // M // 32 * 32)

    def slab(n):
        x = np.ascontiguousarray(bf16_to_float32(weight[n : n + step]).T)  # [M, step]
        expect(np.isfinite(x).all(), CheckpointError, where, "finite weights", "inf or nan")
        part = MXFP4(*(tensor.numpy() for tensor in quantize_mxfp4(torch.from_numpy(x))))
        b = slice(n // 32, (n + step) // 32)
        blocks[:, b], scales[:, b] = part
        return error_of(x, part)
    return blocks, scales, sum(pool.map(slab, range(0, N, step)), Error())


def error_of(x, packed):
    """The Error of `packed`, read as any program would read it, beside the weights x float32 [M, N]."""
    error = dequantize(packed) - x
    return Error(float(np.square(error, dtype=np.float64).sum()), float(np.square(x, dtype=np.float64).sum()),
                 packed.scales.size, int((error.reshape(-1, 32) == 0).all(-1).sum()), float(np.abs(error).max()))


def table(errors):
    """The errors as lines of text, a layer each and then all of them."""
    if not errors:
        return "The experts were packed already: nothing was changed."
    layers = defaultdict(lambda: {"gate_up": Error(), "down": Error()})
    for name, error in errors.items():
        i, which = EXPERTS.fullmatch(name).groups()
        for key in int(i), "all":
            layers[key][which] += error
    lines = ["rms of the error over rms of the weights; blocks of 32 that are exact; largest error of a weight",
             f"{'layer':>5} {'gate_up':>9} {'down':>9} {'exact blocks':>27} {'largest':>9}"]
    for key in sorted(layers, key=lambda key: (key == "all", key)):
        row = layers[key]
        shares = [f"{error.relative:.3%}" if error.blocks else "-" for error in row.values()]
        both = row["gate_up"] + row["down"]
        exact = f"{both.exact:,} of {both.blocks:,}"
        lines.append(f"{key:>5} {shares[0]:>9} {shares[1]:>9} {exact:>27} {both.largest:>9.3g}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Random checkpoints: the right shapes and layouts with random numbers, for tests and benchmarks.

    python -m bench.random_checkpoint DIR                    20b, 13.8 GB
    python -m bench.random_checkpoint DIR --shape 120b       65.2 GB
    python -m bench.random_checkpoint DIR --layers 2 --layout original

They are as slow to run as the real ones, with less to say. Weights are scaled so that activations keep their size from
layer to layer. Letters as in gptoss.py.
"""

if __name__ == "__main__":
    import program

    program.begin()

import json
import math
import os
import shutil
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

import program
from checkpoint import ITEM_BITS, ORIGINAL_KEYS, CheckpointError, Config, expect, tensor_table

OFFICIAL = Config(
    vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64,
    num_key_value_heads=8, head_dim=64, num_local_experts=32, num_experts_per_tok=4, sliding_window=128,
    rope_theta=150000.0, layer_types=("sliding_attention", "full_attention") * 12, max_position_embeddings=131072,
    rope_scaling={"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096,
                  "truncate": False},
)
SHAPES = {
    "20b": OFFICIAL,
    "120b": replace(OFFICIAL, num_hidden_layers=36, num_local_experts=128, layer_types=OFFICIAL.layer_types[:2] * 18),
}
MXFP4_EXPERTS = {"quant_method": "mxfp4", "modules_to_not_convert": [  # quantization_config, as published
    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}


@contextmanager
def atomic_write(path):
    """A file to write that gets its name when all is written, or never."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as out:
            yield out
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # and not the partial file
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, value):
    with atomic_write(path) as out:
        out.write((json.dumps(value, indent=1) + "\n").encode())


def named_config(name, layers=None):
    """The Config of SHAPES[name], with only its first `layers` layers if given. Raises CheckpointError."""
    config = SHAPES[name]
    if layers is None:
        return config
    most = config.num_hidden_layers
    expect(1 <= layers <= most, CheckpointError, "layers", f"1 to {most}", layers)
    return replace(config, num_hidden_layers=layers, layer_types=config.layer_types[:layers])


def config_json(config, layout):
    """The config.json of `config` in either layout, as a dict."""
    fields = asdict(config) | {"layer_types": list(config.layer_types)}
    scaling = fields.pop("rope_scaling")
    eos, _ = list(fields.pop("eos_token_id")), fields.pop("do_sample")  # that is generation_config.json's
    if layout == "hf":
        return fields | {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True,
            "tie_word_embeddings": False, "eos_token_id": eos[0],
            "rope_scaling": {"rope_type": "yarn"} | scaling if scaling else {"rope_type": "default"},
            "quantization_config": MXFP4_EXPERTS,
        }
    says = scaling is not None and not scaling["truncate"]
    expect(says, CheckpointError, "original/ layout", "YaRN with truncate false, all it can say", scaling)
    both = fields | scaling
    theirs = {old: both[new] for old, new in ORIGINAL_KEYS.items()}
    same = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim",
            "num_attention_heads", "num_key_value_heads", "sliding_window", "rope_theta")
    return {key: fields[key] for key in same} | theirs


def random_rows(rng, field, shape, rows):
    """`rows` rows of a tensor as bytes; the size of a weight follows from how many inputs it sums over."""
    n = rows * math.prod(shape[1:])
    if field.endswith("blocks"):
        return rng.bytes(n)
    if field.endswith("scales"):  # e2m1 numbers of random bits have a root mean square of 2.93
        middle = 127 - round(math.log2(2.93 * math.sqrt(32 * shape[-1])))
        return rng.integers(middle - 1, middle + 2, n, dtype=np.uint8).tobytes()
    x = rng.standard_normal(n, dtype=np.float32)
    if field.endswith("norm"):
        x = 1 + x / 8
    elif field.endswith("weight") or field in ("unembedding", "gate_up", "down"):
        x /= math.sqrt(shape[1])
    return (x.view(np.uint32) >> 16).astype("<u2").tobytes()


def random_pieces(rng, entry, size):
    """The `size` bytes of a tensor, an entry of tensor_table, in pieces of a few MB."""
    field, _, _, shape = entry
    step = max(1, 2**22 * shape[0] // size)
    for row in range(0, shape[0], step):
        yield random_rows(rng, field, shape, min(step, shape[0] - row))


def unpacked(table):
    """tensor_table for experts as a training leaves them: bf16 [E, inputs, outputs] in place of blocks and scales."""
    found = {}
    for name, (field, layer, dtype, shape) in table.items():
        if field.endswith("_blocks"):
            E, M, B, _ = shape
            found[name.removesuffix("_blocks")] = field.removesuffix("_blocks"), layer, "BF16", (E, 32 * B, M)
        elif not field.endswith("_scales"):
            found[name] = field, layer, dtype, shape
    return found


def write_random(directory, config, layout="hf", *, packed=True, seed=0, shards=1, progress=False):
    """Write a random checkpoint in `shards` files, a few MB of it in memory at a time. The same seed gives the same
    numbers in both layouts. packed: experts in MXFP4, else bf16. A file has its final name only when it is whole.
    Raises CheckpointError where the disk is too small, or the layout cannot say what the config is."""
    directory, described = Path(directory), config_json(config, layout)
    directory.mkdir(parents=True, exist_ok=True)
    table = tensor_table(config, layout)
    if not packed:
        expect(layout == "hf", CheckpointError, "original/ layout", "packed experts, all it can have", "others")
        table = unpacked(table)
        del described["quantization_config"]
    sizes = {name: bytes_of(dtype, shape) for name, (_, _, dtype, shape) in table.items()}
    total, free = sum(sizes.values()), shutil.disk_usage(directory).free
    expect(total <= free, CheckpointError, directory, f"room for {total / 1e9:.1f} GB", f"{free / 1e9:.1f} GB")

    names, groups = list(table), [{} for _ in range(shards)]
    for j, name in enumerate(names):
        groups[j * shards // len(names)][name] = table[name][2:]
    first, dashes = (0, "-") if layout == "hf" else (1, "--")  # how the official shards are numbered
    files = [f"model{dashes}{j + first:05}-of-{shards - 1 + first:05}.safetensors" for j in range(shards)]
    if shards == 1:
        files = ["model.safetensors"]
    rng = np.random.default_rng(seed)
    with progress_bar() if progress else nullcontext() as bar:
        advance = partial(bar.advance, bar.add_task("writing", total=total)) if bar else None
        for file, tensors in zip(files, groups, strict=True):
            pieces = (piece for name in tensors for piece in random_pieces(rng, table[name], sizes[name]))
            write_safetensors(directory / file, tensors, pieces, advance)
    if shards > 1:
        write_index(directory, dict(zip(files, groups, strict=True)))
    if layout == "hf":
        write_json(directory / "generation_config.json", {
            "eos_token_id": list(config.eos_token_id), "do_sample": config.do_sample})
    write_json(directory / "config.json", described)


def bytes_of(dtype, shape):
    """How many bytes a tensor takes; `dtype` by its safetensors name."""
    return math.prod(shape) * ITEM_BITS[dtype] // 8


def write_safetensors(path, tensors, pieces, advance=None):
    """Write a safetensors file of the tensors {name: (dtype name, shape)}. `pieces` are their bytes in this order, cut
    anywhere, so that they need not be in memory together. advance(n) is told of each n bytes."""
    header, position = {"__metadata__": {"format": "pt"}}, 0  # transformers asks for it
    for name, (dtype, shape) in tensors.items():
        end = position + bytes_of(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with atomic_write(path) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            n = out.write(piece)
            if advance:
                advance(n)


def write_index(directory, files):
    """The index of a checkpoint in shards {file name: {tensor name: (dtype name, shape)}}."""
    total = sum(bytes_of(*tensor) for tensors in files.values() for tensor in tensors.values())
    where = {name: file for file, tensors in files.items() for name in tensors}
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def progress_bar():
    """A bar on standard error that counts bytes, to be used in a `with`."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    return Progress(*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
                    console=Console(stderr=True))


@program.ends("python -m bench.random_checkpoint")
def main():
    parser = program.parser("python -m bench.random_checkpoint",
                            "Write a random checkpoint with the exact shapes of gpt-oss.")
    parser.add_argument("directory", help="where to write it")
    parser.add_argument("--shape", choices=SHAPES, default="20b", help="20b is 13.8 GB, 120b 65.2 GB")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--layout", choices=("hf", "original"), default="hf")
    args = parser.parse_args()
    write_random(args.directory, named_config(args.shape, args.layers), args.layout, progress=True)


if __name__ == "__main__":
    sys.exit(main())

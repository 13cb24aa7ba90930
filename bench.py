"""How fast, beside the limits of the machine: load, prefill and decode of a checkpoint, measured in one run.

    python bench.py                          the bundled model
    python bench.py --checkpoint DIR         any checkpoint
    python bench.py --shape 20b              a random checkpoint of that shape, written to random-20b/ first (13.8 GB)

Decoding must read every active weight once for each token, so its limit is the memory's bandwidth; prefilling
multiplies by each weight many times, so its limit is the rate of float32 matrix products. Both limits are measured
here, first. Absolute figures drift from day to day on a shared machine: quote the shares.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import version
from math import prod
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def seconds(work, repeat):
    """The time of each of `repeat` calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def machine():
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        name = next(lines, name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in ("numpy", "numba"))
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def matmul_rate():
    """float32 FLOP a second of NumPy's matrix product on all cores; before kernels.py holds BLAS to one."""
    a = np.ones((2048, 2048), np.float32)
    a @ a
    return 2 * 2048**3 / min(seconds(lambda: a @ a, 5))


def bandwidth():
    """Bytes a second of reading memory from all cores: a bf16 matrix-vector product, far larger than any cache."""
    import kernels

    weight, x = np.ones((100_000, 2880), np.uint16), np.ones((1, 2880), np.float32)
    y = np.empty((1, len(weight)), np.float32)
    kernels.stream_bf16(x, weight, y)
    return weight.nbytes / min(seconds(lambda: kernels.stream_bf16(x, weight, y), 7))


def work_per_token(config, dense_bytes):
    """Bytes of weights a decoded token reads; FLOP of a prefilled one (without the unembedding, of one row only)."""
    from checkpoint import tensor_table

    c, table = config, tensor_table(config, "hf")
    active = c.num_experts_per_tok / c.num_local_experts
    read = flop = 0
    for field, _, dtype, shape in table.values():
        expert = field.startswith(("gate_up", "down"))
        size = prod(shape) * (active if expert else 1)
        weights = size * 2 if field.endswith("blocks") else size  # two in a byte
        if field != "embedding":
            read += size * (1 if dtype == "U8" else dense_bytes if len(shape) == 2 and not expert else 2)
        if field not in ("embedding", "unembedding") and len(shape) > 1 and not field.endswith(("scales", "bias")):
            flop += 2 * weights
    return read, flop


def measure(path, dense_dtype, prompt, depths, tokens, limits):
    """All figures of one checkpoint as a dict."""
    import gptoss

    start = time.perf_counter()
    model = gptoss.load(path, dense_dtype=dense_dtype)
    load = time.perf_counter() - start
    rng = np.random.default_rng(0)

    def ids(n):
        return rng.integers(0, model.config.vocab_size, n)

    model(ids(prompt), logits_to_keep=1)  # compiles, and reads most pages once: what follows is the warm state
    model(ids(1), logits_to_keep=1)
    read, flop = work_per_token(model.config, 2 if dense_dtype == "bfloat16" else 1)
    figures = {"load_seconds": load, "bytes_per_token": read, "flop_per_token": flop}

    took = statistics.median(seconds(lambda: model(ids(prompt), model.new_cache(), logits_to_keep=1), 3))
    figures["prefill"] = {"tokens": prompt, "tokens_per_second": prompt / took,
                          "share_of_limit": prompt / took * flop / limits["matmul_flop_per_second"]}
    figures["decode"] = []
    cache = model.new_cache()
    for depth in depths:
        if depth > cache.length:
            model(ids(depth - cache.length), cache, logits_to_keep=1)
        took = statistics.median(seconds(lambda: model(ids(1), cache, logits_to_keep=1), tokens))
        figures["decode"].append({"depth": depth, "tokens_per_second": 1 / took,
                                  "share_of_limit": read / took / limits["bytes_per_second"]})
    figures["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures["file_bytes"] = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return figures


def report(results):
    limits, f = results["limits"], results["figures"]
    memory, matmul = limits["bytes_per_second"] / 1e9, limits["matmul_flop_per_second"] / 1e9
    file, read, flop, peak = (f[key] / 1e9 for key in ("file_bytes", "bytes_per_token", "flop_per_token",
                                                       "peak_resident_bytes"))
    print(results["machine"])
    print(f"limits       {memory:.1f} GB/s of memory, {matmul:.0f} GFLOP/s of float32 matrix products")
    print(f"checkpoint   {results['checkpoint']}, {file:.3g} GB, dense weights {results['dense_dtype']}; "
          f"a token takes {read:.3g} GB, {flop:.3g} GFLOP")
    print(f"load         {f['load_seconds']:.2f} s")
    rows = [("prefill", f"{f['prefill']['tokens']} tokens", f["prefill"])]
    rows += [("decode", f"after {d['depth']} tokens", d) for d in f["decode"]]
    for name, what, d in rows:
        print(f"{name:12} {d['tokens_per_second']:8.2f} tokens/s   {d['share_of_limit']:4.0%} of the limit   ({what})")
    print(f"peak memory  {peak:.2f} GB resident, mapped pages included")


def main():
    parser = argparse.ArgumentParser(description="Measure load, prefill and decode beside the machine's limits.")
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, default=HERE / "nano")
    parser.add_argument("--shape", choices=("20b", "120b"), help="measure a random checkpoint of this shape")
    parser.add_argument("--layers", type=int, metavar="N", help="with only its first N layers")
    parser.add_argument("--dense-dtype", choices=("bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--prompt", type=int, default=512, metavar="T", help="tokens to prefill (default: 512)")
    parser.add_argument("--depth", type=int, nargs="+", default=[128], metavar="T", help="tokens before those decoded")
    parser.add_argument("--tokens", type=int, default=20, metavar="T", help="tokens to decode at each depth")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    limits = {"matmul_flop_per_second": matmul_rate()}

    from checkpoint import shape, write_random

    path = args.checkpoint
    try:
        if args.shape:
            config = shape(args.shape, args.layers)
            path = HERE / f"random-{args.shape}{f'-{args.layers}-layers' if args.layers else ''}"
            if not (path / "config.json").exists():
                write_random(path, config, progress=True)
        limits["bytes_per_second"] = bandwidth()
        figures = measure(path, args.dense_dtype, args.prompt, sorted(args.depth), args.tokens, limits)
    except (ValueError, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    results = {"machine": machine(), "checkpoint": path.name, "dense_dtype": args.dense_dtype, "limits": limits,
               "figures": figures}
    print(json.dumps(results, indent=1)) if args.json else report(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

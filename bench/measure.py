"""How fast, beside the limits of the machine: load, prefill and decode of a checkpoint, measured in one run.

Decoding must read every active weight once for each token, so its limit is the memory's bandwidth; prefilling
multiplies by each weight many times, so its limit is the rate of float32 matrix products. Both limits are measured
here, first. Absolute figures drift from day to day on a shared machine: quote the shares, and the ratios.

Everything is measured in processes of its own, one after the other, so that they share nothing but the page cache.
"""

import multiprocessing
import os
import platform
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

import gptoss
from bench.gguf_writer import write_gguf
from checkpoint import MXFP4, expect, read_config, read_tensors, tensor_table

OURS, MAPPED, REPACKED = "gptoss.py", "llama.cpp", "llama.cpp-repacked"


# ---- The machine ----------------------------------------------------------------------------------------------------


def seconds(work, repeat=1):
    """The shortest of `repeat` calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def machine():
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        name = next(lines, name)
    packages = ["numpy", "numba"] + (["llama-cpp-python"] if find_spec("llama_cpp") else [])
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (f"{name}, {os.cpu_count()} cores, {physical_memory() / 2**30:.0f} GiB, "
            f"Python {platform.python_version()}, {versions}")


def physical_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def limits(threads):
    """What `threads` cores reach: FLOP a second of NumPy's float32 matrix product, bytes a second read from memory."""
    from threadpoolctl import threadpool_limits

    a = np.ones((2048, 2048), np.float32)
    with threadpool_limits(threads):
        flop = 2 * 2048**3 / seconds(lambda: a @ a, 6)

    import numba

    numba.set_num_threads(threads)
    import kernels

    weight = np.full((100_000, 2880), 0x3F80, np.uint16)  # ones, far more than caches hold
    x, y = np.ones((1, 2880), np.float32), np.empty((1, len(weight)), np.float32)
    return {"matmul_flop_per_second": flop,
            "bytes_per_second": weight.nbytes / seconds(lambda: kernels.stream_rows(x, weight, y), 8)}


def bytes_of_weights(path, dense_dtype):
    """Bytes of a dense weight and of one of an expert, as the model computes with them."""
    _, (layer, *_), _ = read_tensors(path, *read_config(path))
    experts, dense = layer["gate_up"], layer["q_weight"].itemsize if dense_dtype == "bfloat16" else 34 / 32
    return dense, 17 / 32 if isinstance(experts, MXFP4) else experts.itemsize


def work_of_a_token(config, dense_bytes, expert_bytes, prompt, depths):
    """FLOP of a token prefilled, on average over `prompt` (without the unembedding, of one row only); bytes that a
    token decoded must read, one figure for each depth: active weights, keys, values. dense_bytes, expert_bytes: of a
    weight there."""
    c, table = config, tensor_table(config, "hf")
    active = c.num_experts_per_tok / c.num_local_experts
    flop = weights = 0
    for field, _, dtype, shape in table.values():
        expert = field.startswith(("gate_up", "down"))
        matrix = field.endswith(("_weight", "blocks")) or field == "unembedding"
        size = prod(shape) * (active if expert else 1)
        if matrix and field != "unembedding":
            flop += 2 * size * (2 if dtype == "U8" else 1)  # two numbers in a byte
        if field.endswith("blocks"):
            weights += 2 * size * expert_bytes
        elif field != "embedding" and not field.endswith("scales"):
            dense = matrix and not field.startswith("router")
            weights += size * (dense_bytes if dense else 2 if matrix else 4)  # vectors are float32 from the load on

    windows = [c.sliding_window if kind == "sliding_attention" else prompt for kind in c.layer_types]
    seen = sum(w * (1 - (w - 1) / 2 / prompt) for w in (min(w, prompt) for w in windows))  # keys, mean over the prompt
    flop += 4 * c.num_attention_heads * c.head_dim * seen  # q @ k and p @ v
    key_and_value = 2 * 2 * c.num_key_value_heads * c.head_dim  # of one token in one layer, 16 bits each
    cached = [sum(min(depth, c.sliding_window) if kind == "sliding_attention" else depth for kind in c.layer_types)
              for depth in depths]
    return flop, [weights + key_and_value * keys for keys in cached]


# ---- Two programs ---------------------------------------------------------------------------------------------------
# Each is a function that loads, and returns how long that took and `run(ids, fresh)`: the logits after `ids`, which
# follow what was run before, or nothing if `fresh`.


def gptoss_py(path, config, threads, context, dense_dtype):
    import numba

    numba.set_num_threads(threads)  # before kernels.py, which makes as many of its own
    import kernels

    start = time.perf_counter()
    model = gptoss.load(path, backend=kernels, dense_dtype=dense_dtype)
    took = time.perf_counter() - start
    layers = model.layers[: config.num_hidden_layers]
    model = gptoss.Model(config, model.embedding, layers, model.norm, model.unembedding, model.operations)
    cache = None

    def run(ids, fresh):
        nonlocal cache
        cache = model.new_cache() if fresh else cache
        return model(ids, cache, logits_to_keep=1)[-1]

    return took, run


def llama_cpp(path, config, threads, context, repack):
    """llama.cpp as its own commands set it up, through the functions of its C library: no sampler, no objects."""
    import llama_cpp as api

    errors = []
    log = api.llama_log_callback(lambda level, text, _: errors.append(text.decode().strip()) if level == 4 else None)
    api.llama_log_set(log, None)
    options, sizes = api.llama_model_default_params(), api.llama_context_default_params()
    options.use_extra_bufts = repack  # False: weights are used where they are mapped, as ours; True: rearranged copies
    sizes.n_ctx, sizes.n_threads, sizes.n_threads_batch = context, threads, threads
    sizes.swa_full = False  # a sliding layer keeps its window only
    if config.rope_scaling:
        sizes.yarn_beta_fast, sizes.yarn_beta_slow = (config.rope_scaling[key] for key in ("beta_fast", "beta_slow"))
    start = time.perf_counter()
    model = api.llama_model_load_from_file(os.fsencode(path), options)
    state = model and api.llama_init_from_model(model, sizes)
    took = time.perf_counter() - start
    if not state:
        raise ValueError(f"{path}: llama.cpp does not load it: {'; '.join(errors)}")

    def run(ids, fresh):
        if fresh:
            api.llama_memory_clear(api.llama_get_memory(state), False)
        for first in range(0, len(ids), sizes.n_batch):
            piece = ids[first : first + sizes.n_batch]
            tokens = (api.llama_token * len(piece))(*piece.tolist())
            if error := api.llama_decode(state, api.llama_batch_get_one(tokens, len(piece))):
                raise ValueError(f"{path}: llama_decode returned {error}: {'; '.join(errors)}")
        return np.ctypeslib.as_array(api.llama_get_logits_ith(state, -1), (config.vocab_size,)).copy()

    run.log = log  # must live as long as the library
    return took, run


def memory():
    """Bytes this process had resident at most, mapped pages included, and (Linux) those it has for itself now."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":") for line in status.read_text().splitlines())
        return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmHWM", "RssAnon"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024), None


def measure(program, path, config, threads, prompt, depths, tokens, argument):
    """One turn of one program, in a process of its own: seconds, bytes, and the logits of every run that was timed."""
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) < physical_memory():
        buffer = bytearray(2**24)
        for file in files:  # into the page cache, so that neither program finds it colder than the other does
            with open(file, "rb", buffering=0) as f:
                while f.readinto(buffer):
                    pass
    context = max(prompt, max(depths) + tokens)
    start = time.perf_counter()
    load, run = program(path, config, threads, context, argument)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, context)
    run(ids[:1], True)
    first_token = time.perf_counter() - start
    run(ids[: min(prompt, 64)], True)  # touches nearly every page: what follows is the warm state
    logits = []

    def timed(ids, fresh):
        start = time.perf_counter()
        logits.append(run(ids, fresh))
        return time.perf_counter() - start

    prefill, decode, at = timed(ids[:prompt], True), [], 0
    for depth in depths:
        at = at if at <= depth else 0
        if at < depth:
            run(ids[at:depth], at == 0)
        at = depth + tokens
        decode.append([timed(ids[t : t + 1], False) for t in range(depth, at)])
    peak, own = memory()
    turn = {"first_token": first_token, "load": load, "prefill": prefill, "decode": decode, "peak": peak, "own": own}
    return turn, np.stack(logits)


def apart(function, *arguments):
    """function(*arguments) in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def figures(turns, flop, read, prompt, depths, limits):
    """The medians of a program's turns as rates, beside the limits: what `python -m bench` prints."""
    prefill = prompt / median(turn["prefill"] for turn in turns)
    decode = [1 / median(t for turn in turns for t in turn["decode"][j]) for j in range(len(depths))]
    return {
        "load_seconds": median(turn["load"] for turn in turns),
        "first_token_seconds": median(turn["first_token"] for turn in turns),  # imports included
        "prefill": {"tokens": prompt, "tokens_per_second": prefill, "flop_per_token": flop,
                    "share_of_limit": prefill * flop / limits["matmul_flop_per_second"]},
        "decode": [{"depth": depth, "tokens_per_second": rate, "bytes_per_token": size,
                    "share_of_limit": rate * size / limits["bytes_per_second"]}
                   for depth, rate, size in zip(depths, decode, read, strict=True)],
        "peak_resident_bytes": max(turn["peak"] for turn in turns),
        "own_bytes": turns[0]["own"] and max(turn["own"] for turn in turns),
    }


def gguf_of(directory, config, dense_dtype):
    """The checkpoint's GGUF file, beside its directory; it is written if there is none younger than the checkpoint."""
    path = directory.with_name(f"{directory.name}-{'bf16' if dense_dtype == 'bfloat16' else 'q8_0'}.gguf")
    if not path.exists() or path.stat().st_mtime < max(file.stat().st_mtime for file in directory.iterdir()):
        apart(write_gguf, path, directory, config, dense_dtype)
    return path


# How far apart the logits of both programs may be, as root mean square of the difference / of the logits. llama.cpp
# rounds what it multiplies with MXFP4 or Q8_0 weights to 8 bits, in blocks of 32 numbers: steps of max / 127, where the
# largest of 32 normal numbers is 2.3 times their root mean square, are an error of 2.3 / 127 / sqrt(12) = 0.5% in each
# product. Nine products follow one another in two layers, so errors that add up by chance make 1.6%.
AGREE = 0.03


def difference(ours, theirs):
    """The median over steps: a token may find its fourth and fifth expert so close that an error swaps them."""
    return float(np.median(np.sqrt(np.mean((ours - theirs) ** 2, axis=1) / np.mean(ours**2, axis=1))))


def check_same_function(path, config, dense_dtype, others, threads):
    """How far the logits of llama.cpp are from ours in the first two layers (one sliding, one full) of the same
    weights, past the window: {name: difference}, for each of `others`. All layers would say less: an expert swapped in
    one changes what the next ones choose from, and of random experts a few percent are swapped in each layer."""
    first = config.layer_types[:2]
    config = replace(config, layer_types=first, num_hidden_layers=len(first))
    task = config, threads, config.sliding_window, [config.sliding_window], 20
    with TemporaryDirectory(dir=path.parent) as scratch:
        file = Path(scratch) / f"{path.name}-{len(first)}-layers.gguf"
        apart(write_gguf, file, path, config, dense_dtype)
        _, ours = apart(measure, gptoss_py, path, *task, dense_dtype)
        found = {name: difference(ours, apart(measure, llama_cpp, file, *task, name == REPACKED)[1]) for name in others}
    for name, value in found.items():
        expect(value <= AGREE, ValueError, f"{path}: logits of {name} after {len(first)} layers of the same weights",
               f"those of {OURS} but for its rounding, {AGREE:.0%}", f"{value:.1%} of difference")
    return found


# ---- The command ----------------------------------------------------------------------------------------------------

def benchmark(path, config, dense_dtype, others, threads, prompt, depths, tokens, rounds):
    """What `python -m bench` prints, as a dict: the medians of `rounds` turns of each program, one after the other."""
    longest, limit = max(prompt, max(depths) + tokens), config.max_position_embeddings
    expect(longest <= limit, ValueError, path, f"at most {limit} tokens, the context", f"{longest}")
    weights = bytes_of_weights(path, dense_dtype)
    programs = {OURS: (gptoss_py, path, dense_dtype)}
    if others:
        expect(weights[1] < 1, ValueError, path, "experts in MXFP4, to compare with llama.cpp", "unpacked ones")
        if config.rope_scaling:  # llama.cpp rounds the bounds of YaRN, so here we do as well
            config = replace(config, rope_scaling=config.rope_scaling | {"truncate": True})
        apart_by = check_same_function(path, config, dense_dtype, others, threads)
        file = gguf_of(path, config, dense_dtype)
        programs |= {name: (llama_cpp, file, name == REPACKED) for name in others}
    turns, logits, reached = {name: [] for name in programs}, {}, []
    for n in range(rounds):
        reached.append(apart(limits, threads))
        for name, (program, file, argument) in programs.items():
            print(f"round {n + 1} of {rounds}: {name}", file=sys.stderr)
            turn, logits[name] = apart(measure, program, file, config, threads, prompt, depths, tokens, argument)
            turns[name].append(turn)
    results, found = {}, {key: median(limit[key] for limit in reached) for key in reached[0]}
    for name in programs:
        flop, read = work_of_a_token(config, *weights, prompt, depths)
        results[name] = figures(turns[name], flop, read, prompt, depths, found)
        if name != OURS:
            results[name]["logits_difference"] = {"first_layers": apart_by[name],
                                                  "all_layers": difference(logits[OURS], logits[name])}
    return {"machine": machine(), "threads": threads, "checkpoint": path.name, "dense_dtype": dense_dtype,
            "file_bytes": sum(file.stat().st_size for file in path.glob("*.safetensors")),
            "rounds": rounds, "limits": found, "programs": results}


def report(results):
    r, programs = results, results["programs"]
    ours = programs[OURS]
    print(r["machine"])
    print(f"limits       {r['limits']['bytes_per_second'] / 1e9:.1f} GB/s of memory, "
          f"{r['limits']['matmul_flop_per_second'] / 1e9:.0f} GFLOP/s of float32 matrix products; "
          f"{r['threads']} threads, medians of {r['rounds']} rounds")
    print(f"checkpoint   {r['checkpoint']}, {r['file_bytes'] / 1e9:.3g} GB, dense weights {r['dense_dtype']}; "
          f"a token takes {ours['decode'][0]['bytes_per_token'] / 1e9:.3g} GB, "
          f"{ours['prefill']['flop_per_token'] / 1e9:.3g} GFLOP\n")

    def row(title, cell):
        print((f"{title:<27}" + "".join(f"{cell(f):<27}" for f in programs.values())).rstrip())

    def speed(figure):
        return f"{figure['tokens_per_second']:8.2f} tokens/s  {figure['share_of_limit']:4.0%}"

    print((" " * 32 + "".join(f"{name:<27}" for name in programs)).rstrip())
    row("load", lambda f: f"{f['load_seconds']:8.2f} s")
    row("first token, with imports", lambda f: f"{f['first_token_seconds']:8.2f} s")
    row(f"prefill {ours['prefill']['tokens']} tokens", lambda f: speed(f["prefill"]))
    for j, at in enumerate(ours["decode"]):
        row(f"decode after {at['depth']} tokens", lambda f, j=j: speed(f["decode"][j]))
    row("peak memory, with the file", lambda f: f"{f['peak_resident_bytes'] / 1e9:8.2f} GB")
    if ours["own_bytes"]:
        row("memory without the file", lambda f: f"{f['own_bytes'] / 1e9:8.2f} GB")
    for name, f in list(programs.items())[1:]:
        rates = [f"{ours['prefill']['tokens_per_second'] / f['prefill']['tokens_per_second']:.2f} x in prefill"]
        rates += [f"{a['tokens_per_second'] / b['tokens_per_second']:.2f} x in decode after {a['depth']}"
                  for a, b in zip(ours["decode"], f["decode"], strict=True)]
        logits = f["logits_difference"]
        print(f"\n{OURS} / {name}: {', '.join(rates)}\nlogits apart by {logits['first_layers']:.1%} "
              f"in the first two layers, by {logits['all_layers']:.1%} in all")

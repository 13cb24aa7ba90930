"""Kills a process while it saves what train/ saves, and fills its disk: the old file is left, or the new one.

    python tests/killed.py DIR TIMES      prints what was done, how often, and what was found
"""

import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
import torch  # noqa: E402

from train import export, lora, pack, pretrain  # noqa: E402

TINY = dict(hidden_size=32, num_hidden_layers=1, head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            num_local_experts=2, intermediate_size=32)


def work(source, *seeds):
    """{what is saved: (how, its old form or None)}. Each `how` writes into a directory."""
    nets = [pretrain.new_model(992, seed, **TINY) for seed in seeds]
    states = [{"model": net.state_dict(), "step": 1} for net in nets]
    adapters = [lora.adapt(pretrain.new_model(992, seed, **TINY)) for seed in seeds]
    return {
        "checkpoint": [lambda to, net=net: export.write(net, to) for net in nets],
        "training state": [lambda to, state=state: pretrain.write_state(to / "checkpoint.pt", state)
                           for state in states],
        "adapter": [lambda to, adapter=adapter: lora.write(adapter, "base", to) for adapter in adapters],
        "packed files": [None, lambda to: pack.pack(source, to)],
    }


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.is_dir() else {}


def begin(directory, old, what):
    """The directory as it was before: with the old form of all files, and what the new ones need."""
    shutil.rmtree(directory, ignore_errors=True)
    if what != "packed files":
        directory.mkdir()
    if what == "checkpoint":
        shutil.copy(Path(__file__).parent.parent / "nano" / "tokenizer.json", directory)
    if old:
        old(directory)
    return files(directory)


def child(how, directory, limit=None):
    """A process that saves. It ends with status 2 and one sentence where the disk, as large as `limit`, is full."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        how(directory)
        status = 0
    except OSError as error:
        status = 2 if "\n" not in str(error) and ".partial" not in str(error) else 1
    finally:
        os._exit(status)


def check(before, after, found, what):
    """Each file that has its name is whole: the old or the new one."""
    for name, content in found.items():
        whole = content in (before.get(name), after.get(name)) or name.endswith(".partial")
        assert whole or what == "packed files" and name == "unfinished.json", (what, name)


def main():
    directory, times = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    rng, count = random.Random(0), Counter()
    source = directory / "source"
    make_source(source)
    for what, (old, new) in work(source, 1, 2).items():
        target = directory / "target"
        before = begin(target, old, what)
        began = time.perf_counter()
        new(target)
        took, after = time.perf_counter() - began, files(target)
        for _ in range(times):
            begin(target, old, what)
            process = child(new, target)
            time.sleep(rng.random() * took * 1.2)
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            count["killed" if os.WIFSIGNALED(status) else "done before it was killed"] += 1
            check(before, after, files(target), what)
            new(target) if os.WIFSIGNALED(status) or what != "packed files" else None
            assert files(target) == after, what
        largest = max(map(len, after.values()))
        for _ in range(times):
            begin(target, old, what)
            _, status = os.waitpid(child(new, target, rng.randrange(largest)), 0)
            assert os.waitstatus_to_exitcode(status) == 2, what
            count["disk full"] += 1
            check(before, after, found := files(target), what)
            assert not any(name.endswith(".partial") for name in found), (what, list(found))
            new(target)
            assert files(target) == after, what
        print(f"{what}:", ", ".join(f"{how} {n} times" for how, n in sorted(count.items())), "- whole", flush=True)
        count.clear()


def make_source(source):
    """A checkpoint with experts in float32."""
    from bench.random_checkpoint import write_json, write_safetensors
    from checkpoint import Checkpoint
    source.mkdir(parents=True)
    shutil.copy(Path(__file__).parent.parent / "nano" / "tokenizer.json", source)
    net = pretrain.new_model(992, 5, **TINY)
    export.write(net, source)
    stored = {name: ("F32", tuple(value.shape), value.numpy().tobytes()) for name, value in net.state_dict().items()}
    write_safetensors(source / "model.safetensors", {name: part[:2] for name, part in stored.items()},
                      [part[2] for part in stored.values()])
    config = export.json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    write_json(source / "config.json", config)
    assert Checkpoint(source).tensors


if __name__ == "__main__":
    main()

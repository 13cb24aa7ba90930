"""What is no file where a file should be, what a stranger writes into one, and files that change while they are mapped.

A pipe would wait for ever, /dev/zero has no end, and a link that leads nowhere is not the same as none.
"""

import json
import math
import os
import shutil
import signal
import stat
from functools import partial

import pytest
from safetensors.numpy import load_file, save_file
from shapes import SMALL
from test_checkpoint_fuzz import CONFIG, INDEX, WEIGHTS, checkpoints, lora  # noqa: F401 (fixtures)

import adapter
import gptoss
import models
import serve
import tokenizer
from bench.random_checkpoint import write_random
from conversation import LocalEngine
from files import CheckpointError, expect, expect_number, read_file


@pytest.fixture(autouse=True)
def no_hang():
    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


KINDS = {  # how something comes to be there, and what it is found to be
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "a device without an end": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    "an empty device": (lambda path: path.symlink_to("/dev/null"), "a pipe or a device"),
    "a socket": (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), "a pipe or a device"),
    "a directory": (os.mkdir, "a directory"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "a link to nothing": (lambda path: path.symlink_to("a-blob-that-was-deleted"), "no such file"),
}
kinds = pytest.mark.parametrize("make, found", KINDS.values(), ids=KINDS)


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 1000
    for word in words:
        assert word in sentence, f"expected {word!r} in {sentence!r}"


@kinds
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX, WEIGHTS])
def test_a_checkpoint(name, make, found, checkpoints, tmp_path):  # noqa: F811
    directory = shutil.copytree(checkpoints / ("shards" if name == INDEX else "hf"), tmp_path / "x")
    (directory / name).unlink()
    make(directory / name)
    kind = "a safetensors file" if name == WEIGHTS else "a file"
    refused(lambda: gptoss.load(directory, backend="numpy"), f"{name}: expected {kind}, found {found}")


@kinds
def test_a_shard(make, found, checkpoints, tmp_path):  # noqa: F811
    directory = shutil.copytree(checkpoints / "shards", tmp_path / "x")
    path = min(directory.glob("*.safetensors"))
    path.unlink()
    make(path)
    refused(lambda: gptoss.load(directory, backend="numpy"), f"{path.name}: expected a safetensors file, found {found}")


@kinds
def test_a_tokenizer(make, found, tmp_path):
    make(tmp_path / "tokenizer.json")
    refused(lambda: tokenizer.load(tmp_path), f"tokenizer.json: expected a file, found {found}")


@kinds
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter(name, make, found, lora, tmp_path):  # noqa: F811
    directory = shutil.copytree(lora, tmp_path / "x")
    (directory / name).unlink()
    make(directory / name)
    refused(lambda: adapter.adapt([{}], directory, CONFIG), f"{name}: expected a ", f"file, found {found}")


@kinds
def test_a_directory_and_what_stands_for_it(make, found, tmp_path):
    make(tmp_path / "x")
    found = found.replace("such file", "such directory")
    if found != "a directory":
        for load in (lambda: gptoss.load(tmp_path / "x"), lambda: models.find(tmp_path / "x", print)):
            refused(load, f"x: expected a checkpoint directory, found {found}")
        refused(lambda: gptoss.load("nano", backend="numpy", adapter=tmp_path / "x"), "the directory of an adapter, ")


@kinds
def test_a_branch_in_the_cache(make, found, tmp_path, monkeypatch):
    """What is broken there is not listed. Who asks for it is told, before the Hub is asked, which would read it too."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--openai--gpt-oss-20b"
    (folder / "refs").mkdir(parents=True)
    make(folder / "refs" / "main")
    assert [name for name, *_ in models.available()] == ["nano"]
    if found != "a directory":
        for name in ("20b", folder):
            refused(partial(models.find, name, print), f"refs/main: expected a file, found {found}")


@kinds
@pytest.mark.parametrize("part", ["refs", "snapshots", "."])
def test_a_folder_of_the_cache(part, make, found, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "models--some--model"
    if part != ".":
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("1" * 40)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else None
    make(folder / part if part != "." else folder)
    assert [name for name, *_ in models.available()] == ["nano"]
    refused(lambda: models.find("some/model", print), "some/model: expected ")


def test_a_file_that_is_too_large_is_not_read(tmp_path, checkpoints):  # noqa: F811
    """A file with a hole takes no room on the disk, but its zeros would in memory."""
    directory = shutil.copytree(checkpoints / "hf", tmp_path / "x")
    os.truncate(directory / "config.json", 2**40)
    refused(lambda: gptoss.load(directory), "config.json: expected a file of at most 10,000,000 bytes, found more")
    (tmp_path / "small").write_bytes(b"1234")
    assert read_file(tmp_path / "small", 4) == b"1234"
    with pytest.raises(OSError, match="small: expected a file of at most 3 bytes, found more"):
        read_file(tmp_path / "small", 3, OSError)


# ---- What a stranger writes -----------------------------------------------------------------------------------------

def test_a_complaint_is_one_line_that_a_terminal_shows():
    for text in ("\x1b[2J\x1b]0;title\a", "a\nb", "\u202egnp.exe", "\ud800", "x" * 10_000, "\x9b" * 10_000):
        refused(partial(expect, False, ValueError, text, text, text), ": expected ", ", found ")
    refused(lambda: expect(False, ValueError, "a", "b", ["\x1b"]), "a: expected b, found ['\\x1b']")
    refused(lambda: expect(False, ValueError, "\x1b[2J", "é 漢", "x" * 400),
            "\\x1b[2J: expected é 漢, found x", "x ... ")
    refused(lambda: expect_number(10**400, float, 0, math.inf, ValueError, "t"), "t: expected a number of at least 0")


HOSTILE = ["\x1b[2J\x1b[31mgone", "x" * 10_000, "a\nb: expected nothing, found nothing", "\u202e"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_is_shown_in_one_line(name, checkpoints, lora, tmp_path):  # noqa: F811
    """In the index, in a header, in the keys and values of a config and of an adapter."""
    def checkpoint(file, change):
        directory = shutil.copytree(checkpoints / ("shards" if file == INDEX else "hf"), tmp_path / "x")
        value = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps(change(value)))
        refused(lambda: gptoss.load(directory, backend="numpy"))
        shutil.rmtree(directory)

    checkpoint(INDEX, lambda index: {"weight_map": index["weight_map"] | {"lm_head.weight": name}})
    checkpoint(INDEX, lambda index: {"weight_map": index["weight_map"] | {"lm_head.weight": name + ".safetensors"}})
    checkpoint(INDEX, lambda index: {"weight_map": index["weight_map"] | {name: "model.safetensors"}})
    checkpoint(INDEX, lambda index: {"weight_map": name})
    for key in ("model_type", "layer_types", "hidden_size", "rope_scaling"):
        checkpoint("config.json", lambda config, key=key: config | {key: name})
    checkpoint("config.json", lambda config: config | {"layer_types": [name]})
    checkpoint("generation_config.json", lambda config: {"eos_token_id": name})

    directory = shutil.copytree(lora, tmp_path / "y")
    tensors = load_file(lora / "adapter_model.safetensors")
    config = json.loads((lora / "adapter_config.json").read_text())
    for changes in ({name: 1}, {"bias": name}, {"rank_pattern": {name[:100] + "(": 1}}, {"rank_pattern": {name: 1}},
                    {"alpha_pattern": {".*": name}}):
        (directory / "adapter_config.json").write_text(json.dumps(config | changes))
        if changes != {"rank_pattern": {name: 1}} or len(name) > 200:  # else it is a pattern that fits no name
            refused(lambda: adapter.adapt([{}], directory, CONFIG))
    shutil.copy(lora / "adapter_config.json", directory)
    for new in (name, f"base_model.model.model.layers.0.{name}.lora_A.weight"):
        save_file(tensors | {new: tensors.popitem()[1]}, directory / "adapter_model.safetensors")
        refused(lambda: adapter.adapt([{}], directory, CONFIG))


def test_a_folder_of_the_cache_whose_name_is_none_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("openai--gpt-oss-20b", "\x1b[2J--x", "some--model"):
        snapshot = tmp_path / f"models--{name}" / "snapshots" / ("1" * 40)
        shutil.copytree("nano", snapshot, ignore=shutil.ignore_patterns("*.md"))
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / ("main" if name != "some--model" else "\x1b[2J")).write_text("1" * 40)
    assert [name for name, *_ in models.available()] == ["nano", "openai/gpt-oss-20b"]
    assert models.label(tmp_path / "models--\x1b[2J--x", tmp_path / "models--\x1b[2J--x").isprintable()


@pytest.mark.parametrize("pattern", [
    "(a+)+$", r"(\w*)*X", "(.|.)" * 40 + "X", ".*" * 30 + "X", "a?" * 40, "(?i)[\0-\U0010ffff]", "(a{1000}){1000}",
    "x" * 201, "(" * 150 + ")" * 150, "a{99999999999999}", "(?P<n>x)(?(n)a|b)",
], ids=ascii)
def test_a_pattern_that_may_take_years_is_refused(pattern, lora, tmp_path):  # noqa: F811
    directory = shutil.copytree(lora, tmp_path / "x")
    config = json.loads((lora / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {pattern: 2}}))
    refused(lambda: adapter.adapt([{}], directory, CONFIG), "adapter_config.json: rank_pattern: expected ")


@pytest.mark.parametrize("text", [r"q_proj", r"layers\.(0|1)\.self_attn\.[kv]_proj", r".*layers\.\d+\.mlp.*down_proj"])
def test_a_pattern_as_people_write_them_is_taken(text, lora, tmp_path):  # noqa: F811
    directory = shutil.copytree(lora, tmp_path / "x")
    config = json.loads((lora / "adapter_config.json").read_text())
    config["alpha_pattern"] = {f"{text}_{n}": 3 for n in range(1000)}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    adapter.adapt([{"q_weight": 0, "gate_up": 0}], directory, CONFIG)


@pytest.mark.parametrize("depth", [90, *range(900, 1000, 7)])
def test_what_can_be_read_can_be_shown(depth, checkpoints, lora, tmp_path):  # noqa: F811
    """Python reads lists in lists up to some depth. None of those that it reads is too deep to be shown."""
    deep = "[" * depth + "]" * depth
    directory, folder = shutil.copytree(checkpoints / "shards", tmp_path / "x"), shutil.copytree(lora, tmp_path / "y")
    for name, text in ((INDEX, '{"weight_map": %s}'), (INDEX, '{"weight_map": {"a": %s}}'),
                       ("generation_config.json", '{"eos_token_id": %s}'),
                       ("config.json", '{"model_type": "gpt_oss", "rope_scaling": {"rope_type": %s}}'),
                       ("config.json", '{"model_type": "gpt_oss", "quantization_config": {"quant_method": %s}}')):
        (directory / name).write_text(text % deep)
        refused(lambda: gptoss.load(directory, backend="numpy"))
    (folder / "adapter_config.json").write_text(f'{{"peft_type": {deep}}}')
    refused(lambda: adapter.adapt([{}], folder, CONFIG))
    header = b'{"a": %b}' % deep.encode()
    (folder / "adapter_config.json").write_bytes((lora / "adapter_config.json").read_bytes())
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: adapter.adapt([{}], folder, CONFIG))


# ---- Files that change while they are mapped ------------------------------------------------------------------------

@pytest.fixture
def engine(tmp_path):
    write_random(tmp_path, SMALL, shards=3)
    return LocalEngine(gptoss.load(tmp_path, backend="numpy"))


def shards(directory):
    return sorted(directory.glob("*.safetensors"))


def turn(engine):
    return list(engine.generate([1, 2, 3], max_tokens=2, temperature=0, stop=()))


@pytest.mark.parametrize("number", [0, 2])
def test_weights_that_were_written_to_are_noticed_before_a_turn(number, engine, tmp_path):
    """Else a file that became shorter would end the process in the middle of the turn, without a word."""
    path, first = shards(tmp_path)[number], turn(engine)
    data = path.read_bytes()
    for change in (lambda: os.truncate(path, 1000), lambda: path.write_bytes(data + b"\0"),
                   lambda: os.utime(path, ns=(1, 1)), lambda: path.write_bytes(b"")):
        change()
        with pytest.raises(CheckpointError) as caught:
            turn(engine)
        assert str(caught.value) == (f"{path}: expected the weights that were loaded, found a file that was changed "
                                     "since then (start again)")
    path.write_bytes(data)
    engine.model.files[path] = os.stat(path)
    assert turn(engine) == first


def test_that_weights_were_written_to_is_no_fault_of_a_client():
    assert serve.failure(CheckpointError("x: expected")) == ("x: expected", 500, "server_error")


def test_what_takes_the_place_of_weights_does_no_harm(engine, tmp_path):
    """A download writes beside the file and then changes the names. What is mapped stays what it was."""
    first, (a, b, c) = turn(engine), shards(tmp_path)
    (tmp_path / "new").write_bytes(b"other weights")
    os.replace(tmp_path / "new", a)
    b.unlink()
    b.symlink_to(b.name)
    c.unlink()
    assert turn(engine) == first


def test_a_file_that_hides_its_size_is_not_read_beyond_the_limit():
    assert os.path.getsize("/proc/self/maps") == 0
    with pytest.raises(CheckpointError, match="expected a file of at most 10 bytes, found more"):
        read_file("/proc/self/maps", most=10)

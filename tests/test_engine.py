"""Prompts whose keys and values are kept: which cache is taken, what is given up, and what comes back from disk."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from conftest import ROOT
from shapes import SMALL

import engine as engines
import gptoss
from bench.random_checkpoint import write_random
from engine import LocalEngine

OPENING, OTHER = [7 + n % 190 for n in range(150)], [11 + n * 7 % 190 for n in range(150)]


class Watched(gptoss.Model):
    """A model that counts what it is given to read."""
    read = 0

    def __call__(self, tokens, cache=None, **kwargs):
        self.read += len(tokens)
        return super().__call__(tokens, cache, **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_random(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return gptoss.load(folder, backend="numpy", model=Watched)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """So that a prompt of 150 tokens is a long one."""
    monkeypatch.setattr(engines, "CHUNK", 100)
    monkeypatch.setattr(engines, "LEAST", 100)


def ask(engine, prompt, n=3):
    """How many tokens were read for the first id, and the reply, which is what a fresh cache gives."""
    before = engine.model.read
    reply = engine.generate(prompt, temperature=0, max_tokens=n, stop=())
    first = next(reply)
    read = engine.model.read - before
    ids = [first, *reply]
    assert ids == list(gptoss.generate(engine.model, prompt, temperature=0, max_tokens=n, stop=()))
    return read, ids


# ---- In memory ------------------------------------------------------------------------------------------------------

def test_several_prompts_are_kept(model):
    """Two conversations by turns: with one cache each begins anew, with two neither does."""
    for caches, expected in ((1, [151, 151, 152, 152]), (2, [151, 151, 1, 1])):
        engine = LocalEngine(model, caches)
        assert [ask(engine, [*prompt, *end])[0] for end in ([5], [5, 6])
                for prompt in (OPENING, OTHER)] == expected


def test_the_longest_beginning_is_used(model):
    engine = LocalEngine(model, 3)
    ask(engine, [*OPENING, 1])
    ask(engine, [*OPENING[:60], *OTHER])
    assert ask(engine, [*OPENING[:60], *OTHER, 2])[0] <= 2
    assert ask(engine, [*OPENING[:140], 3])[0] == 1
    assert len(engine.others) == 1


def test_what_all_prompts_share_is_copied_and_the_rest_stays(model):
    """A short prompt that shares its beginning with a long one takes a copy of that. The long one is kept."""
    engine = LocalEngine(model, 2)
    ask(engine, [*OPENING, 1])
    assert ask(engine, [*OPENING[:50], 200, 201])[0] == 2
    assert ask(engine, [*OPENING, 2])[0] == 1


def test_the_one_not_used_for_the_longest_time_is_given_up(model):
    engine, prompts = LocalEngine(model, 2), [[n, *OTHER[:80]] for n in (1, 2, 3)]
    for n in (0, 1, 0, 2):  # 2 takes the place of 1
        ask(engine, prompts[n])
    assert ask(engine, prompts[0])[0] == 1
    assert ask(engine, prompts[1])[0] == 81
    assert len(engine.others) == 1


def test_reading_can_be_interrupted_and_goes_on(model):
    """Between two chunks of a long prompt. What was read stays read, and the engine answers the next."""
    engine = LocalEngine(model)
    prompt = [7 + n % 190 for n in range(250)]

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    engine.progress = stop
    with pytest.raises(Stop):
        next(engine.generate(prompt, temperature=0))
    assert engine.cache.length == engines.CHUNK
    del engine.progress
    assert ask(engine, prompt)[0] == 250 - engines.CHUNK


# ---- On disk --------------------------------------------------------------------------------------------------------

def test_a_prompt_comes_back_from_disk(model, tmp_path):
    """In the next run of the program, bit by bit, also for a prompt that only begins like it."""
    said = []
    first = LocalEngine(model, 1, tmp_path, said.append)
    _, ids = ask(first, [*OPENING, 5])
    [file] = tmp_path.iterdir()
    assert file.stat().st_size > 151 * 2 * 2 * model.config.num_key_value_heads * model.config.head_dim
    second = LocalEngine(model, 2, tmp_path, said.append)
    assert ask(second, [*OPENING, 5]) == (1, ids)
    for ours, theirs in zip(second.cache.layers, first.cache.layers, strict=True):
        np.testing.assert_array_equal(ours[:, :, :150], theirs[:, :, :150])
    third = LocalEngine(model, 1, tmp_path, said.append)
    assert ask(third, [*OPENING[:140], 9, 9])[0] == 2
    assert said == [] and [*tmp_path.iterdir()] == [file]


def test_short_prompts_and_small_changes_are_not_written(model, tmp_path):
    engine = LocalEngine(model, 1, tmp_path)
    ask(engine, OPENING[:90])
    assert not [*tmp_path.iterdir()]
    ask(engine, OPENING)
    [file] = tmp_path.iterdir()
    ask(engine, [*OPENING, *OTHER[:70]])
    assert [*tmp_path.iterdir()] == [file]
    ask(engine, [*OPENING, *OTHER])  # twice as long: it takes the place of its beginning
    [longer] = tmp_path.iterdir()
    assert longer != file


def test_the_folder_is_bounded(model, tmp_path):
    engine = LocalEngine(model, 1, tmp_path)
    ask(engine, OPENING)
    [file] = tmp_path.iterdir()
    os.utime(file, (0, 0))
    engine.files.most = 2.5 * file.stat().st_size
    for n in (1, 2):
        ask(engine, [n, *OPENING])
    assert len([*tmp_path.iterdir()]) == 2 and not file.exists()
    engine.files.most = 1000
    ask(engine, OTHER)
    assert len([*tmp_path.iterdir()]) == 2


def broken(data):
    """Names and contents of files that are not what they should be."""
    line = data.index(b"\n")
    yield "no such file", b""
    yield "another file", b"GGUF" + data
    yield "not JSON", b"{" + data
    yield "a list", b"[]\n" + data
    yield "cut", data[: len(data) // 2]
    yield "longer", data + b"\0"
    yield "one bit", data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    at = line + 1 + 4 * 150  # the last
    yield "an id", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    yield "the format", data.replace(b"version 1", b"version 0", 1)
    yield "the model", data.replace(b'"model": "', b'"model": "0', 1)
    yield "the shape", data.replace(b'"tokens": 151', b'"tokens": 1e99', 1)
    yield "a pickle", b"\x80\x04\x95" + data


def test_what_does_not_fit_is_not_used(model, tmp_path):
    """A sentence says so, and the prompt is read anew."""
    engine = LocalEngine(model, 1, tmp_path)
    _, ids = ask(engine, [*OPENING, 5])
    [file] = tmp_path.iterdir()
    data = file.read_bytes()
    for name, content in broken(data):
        file.write_bytes(content)
        said = []
        engine = LocalEngine(model, 1, tmp_path, said.append)
        engine.files.most = 0  # write nothing
        assert ask(engine, [*OPENING, 5]) == (151, ids), name
        assert len(said) == 1 and "expected" in said[0] and "\n" not in said[0], name
    assert "version 1" in data[:100].decode()


def test_another_model_is_refused(model, folder, tmp_path):
    ask(LocalEngine(model, 1, tmp_path), OPENING)
    other = gptoss.load(folder, backend="numpy", model=Watched)
    assert engines.fingerprint(other) == engines.fingerprint(model)
    other.norm = other.norm.copy()
    other.norm[3] += 1e-3
    said = []
    LocalEngine(other, 1, tmp_path, said.append)
    assert "model: expected" in said[0]
    layer = model.layers[2]
    other.norm, other.layers = model.norm, list(model.layers)
    other.layers[2] = layer._replace(q_weight=layer.q_weight ^ 1)  # as an adapter would change it
    assert engines.fingerprint(other) != engines.fingerprint(model)


def test_a_kill_in_the_middle_of_writing(model, folder, tmp_path):
    """The file is there whole or not at all; what is left over does no harm, and goes away later."""
    program = (f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); import engine, gptoss\n"
               "engine.LEAST, engine.os.fsync = 100, lambda file: os._exit(9)\n"
               f"model = gptoss.load({str(folder)!r}, backend='numpy')\n"
               f"next(engine.LocalEngine(model, 1, {str(tmp_path)!r}).generate(range(150), temperature=0))")
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    [part] = tmp_path.iterdir()
    assert part.name.endswith(".part")
    said = []
    assert ask(LocalEngine(model, 1, tmp_path, said.append), list(range(150)))[0] == 150
    assert said == [] and len([*tmp_path.glob("*.kv")]) == 1
    os.utime(part, (0, 0))
    LocalEngine(model, 1, tmp_path)
    assert not part.exists()


def test_a_folder_that_cannot_be_written(model, tmp_path, monkeypatch):
    said = []
    engine = LocalEngine(model, 1, tmp_path, said.append)
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines.os, "fsync", full)
    ask(engine, OPENING)
    assert said == [f"{tmp_path}: expected room for a prompt of 150 tokens, found No space left on device"]
    assert not [*tmp_path.iterdir()]
    with pytest.raises(OSError):
        LocalEngine(model, 1, ROOT / "README.md")


def test_what_is_closed_early_leaves_the_caches_whole(model, tmp_path):
    engine = LocalEngine(model, 2, tmp_path)
    for prompt in (OPENING, OTHER, OPENING):
        with closing(engine.generate(prompt, temperature=0)) as reply:
            next(reply)
        engine.generate(prompt, temperature=0).close()
    assert ask(engine, [*OTHER, 3])[0] == 1 and ask(engine, [*OPENING, 3])[0] == 1

"""An exception at any line, a kill at any moment: what was said stays, and no cache is taken for another."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted, ask
from shapes import SMALL

import conversation
import engine as engines
import gptoss
import transcript
from bench.random_checkpoint import write_random
from conversation import Conversation
from engine import LocalEngine
from harmony import Function, Message, Namespace

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
CASES, KILLS, STEP = (20_000, 100, 1) if LONG else (60, 4, 29)
CALL = "[channel]analysis[message]Hm.[end][start]assistant[channel]commentary to=functions.f[message]{}[call]"
SO = "[channel]analysis[message]Ah.[end][start]assistant[channel]final[message]So.[return]"
OPENING, OTHER = [7 + n % 190 for n in range(80)], [11 + n * 7 % 190 for n in range(80)]


class Tool:
    namespace = Namespace("functions", None, [Function("f", "")])

    def call(self, recipient, content):
        return "5"


class At:
    """Raises at the n-th line of some files that is run inside it."""

    def __init__(self, n, error, *modules):
        self.n, self.error, self.files = n, error, {module.__file__ for module in modules}

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.n -= 1
            if self.n == 0:
                raise self.error
        return self.trace


def interruptions(error, *modules, step=STEP):
    """An At for every line of a run, or each step-th, until one is not reached."""
    n = 1
    while True:
        at = At(n, error, *modules)
        yield at
        if at.n > 0:
            return
        n += step


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_turn_that_breaks_off_anywhere_leaves_whole_messages(tokenizer, error):
    """No call without its result, nothing twice, and the conversation goes on."""
    for at in interruptions(error, conversation):
        chat = Conversation(Scripted(tokenizer, CALL, SO), tokenizer, tools=[Tool()])
        try:
            with at:
                ask(chat, "One?")
        except error:
            pass
        whole = [("user", "One?"), ("assistant", "Hm."), ("assistant", "{}"), ("tool", "5"), ("assistant", "Ah."),
                 ("assistant", "So.")]
        told = [(message.role, message.content) for message in chat.history if message.role != "tool"]
        allowed = iter([said for said in whole if said[0] != "tool"])
        assert all(any(text and wanted[1].startswith(text) and wanted[0] == role for wanted in allowed)
                   for role, text in told), told
        for call, result in zip(chat.history, [*chat.history[1:], Message("user", "")], strict=False):
            assert (call.recipient == "functions.f") == (result.role == "tool")
        chat.engine.replies = [SO]
        assert ask(chat, "Two?")["final"] == "So."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_random(folder, SMALL)
    return gptoss.load(folder, backend="numpy")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(engines, "CHUNK", 30)
    monkeypatch.setattr(engines, "LEAST", 50)


def logits(model, cache):
    """What a cache gives for its last id."""
    n = cache.rewind(cache.length - 1)
    return model(cache.ids[n : n + 1], cache)[-1]


@pytest.mark.parametrize("caches", [1, 2])
def test_an_engine_that_breaks_off_anywhere_takes_no_cache_for_another(model, tmp_path, caches):
    """Two prompts by turns, with files, in the engine's lines and the model's: then every cache gives what a fresh one
    gives for the ids that it says it holds."""
    for at in interruptions(MemoryError, engines, gptoss, step=7 if LONG else 31 * STEP):
        engine = LocalEngine(model, caches, tmp_path)
        for prompt in (OPENING, [*OPENING[:20], *OTHER]):
            next(engine.generate(prompt, temperature=0))
        try:
            with at:
                next(engine.generate([*OPENING[:60], *OTHER[:9]], temperature=0))
        except MemoryError:
            pass
        for prompt in ([*OPENING, 5], [*OTHER, 5]):
            with closing(engine.generate(prompt, temperature=0, max_tokens=3, stop=())) as ids:
                assert [*ids] == [*gptoss.generate(model, prompt, temperature=0, max_tokens=3, stop=())], at.n
        for cache in {id(cache): cache for cache in (*engine.others, engine.cache)}.values():
            if cache.length:
                fresh = model.new_cache()
                model(cache.ids[: cache.length], fresh, logits_to_keep=1)
                fresh.ids = cache.ids
                np.testing.assert_allclose(logits(model, cache), logits(model, fresh), atol=0.05)
        for path in tmp_path.iterdir():
            path.unlink()


# ---- Files ----------------------------------------------------------------------------------------------------------

def test_what_is_no_prompt_file_is_not_opened(model, tmp_path):
    """A pipe would be waited for, and a device has no end."""
    os.mkfifo(tmp_path / "pipe.kv")
    (tmp_path / "zero.kv").symlink_to("/dev/zero")
    (tmp_path / "loop.kv").symlink_to("loop.kv")
    (tmp_path / "folder.kv").mkdir()
    said = []
    next(LocalEngine(model, 1, tmp_path, said.append).generate(OPENING, temperature=0))
    assert len(said) == 4 and all("expected a prompt's keys and values, found no such" in line for line in said)


def test_a_folder_that_may_only_be_read_is_used(model, tmp_path, monkeypatch):
    next(LocalEngine(model, 1, tmp_path).generate(OPENING, temperature=0))
    monkeypatch.setattr(os, "utime", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    said = []
    engine = LocalEngine(model, 1, tmp_path, said.append)
    engine.generate([*OPENING, 5], temperature=0)
    assert engine.cache.length == len(OPENING) and said == []


@settings(max_examples=CASES)
@given(st.data())
def test_a_damaged_prompt_file_is_not_used(model, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "prompts"
    if not folder.exists():
        next(LocalEngine(model, 1, folder).generate(OPENING, temperature=0))
        [path] = folder.iterdir()
        path.rename(folder / "whole")
    path, whole = folder / "damaged.kv", (folder / "whole").read_bytes()
    at = data.draw(st.integers(0, len(whole)) | st.integers(0, whole.index(b"\n") + 20))
    end = at + data.draw(st.sampled_from([0, 1, 2, len(whole)]))
    damaged = whole[:at] + data.draw(st.binary(max_size=3) | st.sampled_from([b"-", b"9" * 30, b"NaN"])) + whole[end:]
    path.write_bytes(damaged)
    said = []
    engine = LocalEngine(model, 1, folder, said.append)
    engine.generate([*OPENING, 5], temperature=0)
    assert engine.cache.length == (len(OPENING) if damaged == whole else 0)
    assert len(said) <= (damaged != whole)  # none where the prompt's first id is another one now
    assert all("\n" not in line and len(line) < 1000 for line in said)


SAVING = """
import sys
sys.path.insert(0, {root!r})
import transcript
from harmony import Message
for n in range(10**9):
    transcript.save({path!r}, [Message("user", str(n % 10) * 300_000)])
    n or print(flush=True)
"""


def test_a_kill_while_saving_leaves_the_old_file_or_the_new(tmp_path):
    path, rng = tmp_path / "talk.json", random.Random(0)
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", SAVING.format(root=str(ROOT), path=str(path))],
                                 stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(rng.random() / 20)  # a random moment is what this is about
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        [message] = transcript.load(path)[2]
        assert message.content == message.content[0] * 300_000


def test_what_a_killed_program_left_is_in_nobodys_way(tmp_path):
    """In a container every program may have the same number."""
    (tmp_path / f".talk.json.{os.getpid()}").write_text("half")
    transcript.save(tmp_path / "talk.json", [Message("user", "Hi")])
    assert transcript.load(tmp_path / "talk.json")[2] == [Message("user", "Hi")]
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link.json").symlink_to("talk.json")
    transcript.save(tmp_path / "link.json", [Message("user", "Hi")])
    assert (tmp_path / "link.json").is_symlink() and transcript.load(tmp_path / "talk.json")[2]


# ---- The context is full --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("reply", [
    "[channel]analysis[message]" + "Hm. " * 90, "[channel]commentary to=functions.f[message]" + "1, " * 90,
    "[channel]final[message]" + "So. " * 90])
def test_a_context_that_fills_says_so_and_what_is_free(tokenizer, reply):
    """In a thought, a call or an answer; also by an engine that ends one token earlier, as a server does."""
    for more in (0, 1):
        chat = Conversation(engine := Scripted(tokenizer, reply, SO), tokenizer, tools=[Tool()])
        engine.context = len(chat.prompt("Well?")) + 80
        said = ask(chat, "Well?", max_tokens=80 + more)
        free = engine.context - len(chat.prompt(""))
        assert said["note"] == (f"stopped: the context of {engine.context} tokens is full; {max(free, 0)} are free "
                                "for a next question, more if this one is taken back")
        if "final" not in said:
            assert ask(chat, "And now?")["final"] == "So."  # neither thoughts nor half a call are in the way
        assert chat.undo()


def test_a_result_leaves_room_for_an_answer(tokenizer):
    tool = Tool()
    tool.call = lambda recipient, content: "word " * 3000
    chat = Conversation(engine := Scripted(tokenizer, CALL, SO), tokenizer, tools=[tool])
    engine.context = len(chat.prompt("Well?")) + 1000
    assert ask(chat, "Well?")["final"] == "So."
    assert engine.context - len(engine.prompts[1]) > 400


def test_a_prompt_that_does_not_fit_changes_nothing(tokenizer):
    chat = Conversation(engine := Scripted(tokenizer), tokenizer)
    engine.context = 50
    with pytest.raises(ValueError, match=r"the prompt: expected fewer than 50 tokens, the context, found \d+"):
        chat.ask("Well?")
    assert chat.history == []

"""tests/official.py, without the official weights: made-up facts about the small model that ships, and a checkpoint of
another shape."""

import json
import shutil
import subprocess
import sys

import official
import pytest
from conftest import ROOT
from shapes import SMALL

import gptoss
import tokenizer
from bench.random_checkpoint import SHAPES, write_random

NANO = ROOT / "nano"
PROMPTS = ("12 + 30 =", "12+30: 2+0=2", "Hello")  # (what follows is spelled as the tokenizer spells it)


@pytest.fixture
def said():
    """What the small model says after PROMPTS, greedily, in eight tokens."""
    model, text = gptoss.load(NANO, backend="numpy"), tokenizer.load(NANO)
    return [text.decode(gptoss.generate(model, text.encode(prompt), max_tokens=8, temperature=0, stop=(),
                                        cache=model.new_cache("float32"))) for prompt in PROMPTS]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(continuations of each prompt, directory) -> exit status, lines printed, lines of error."""

    def run(continuations, directory=NANO, config=(("num_hidden_layers", 4), ("vocab_size", 992))):
        prompts = [{"prompt": p, "continuations": c} for p, c in zip(PROMPTS, continuations, strict=False)]
        facts = tmp_path / "facts.json"
        facts.write_text(json.dumps({"models": [{"name": "nano", "config": dict(config), "prompts": prompts}]}))
        monkeypatch.setattr(official, "FACTS", facts)
        monkeypatch.setattr(sys, "argv", ["official.py", str(directory), "--backend", "numpy"])
        try:
            status = official.main()
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_right_continuations(said, run):
    status, lines, errors = run([[text] for text in said])
    assert (status, errors) == (0, [])
    assert lines == [f"nano: {prompt!r}: right, 8 tokens, {text!r}" for prompt, text in zip(PROMPTS, said, strict=True)]


def test_nothing_is_asked_beyond_where_the_published_ones_part(said, run):
    assert said[0] == " 53. 33."
    status, lines, _ = run([[" 53. 12", " 53, 33."]])
    assert status == 0 and lines == ["nano: '12 + 30 =': right, 3 tokens, ' 53'"]


def test_a_wrong_token_is_named(said, run):
    status, lines, _ = run([[" 53. 43."], [said[1]]])
    assert status == 1
    assert lines[0] == "nano: '12 + 30 =': token 6, after ' 53. ': expected '4', found '3'"
    assert lines[1].startswith("nano: '12+30: 2+0=2': right")


def test_the_cache_is_float32(said, run, monkeypatch):
    asked, new_cache = [], gptoss.Model.new_cache
    monkeypatch.setattr(gptoss.Model, "new_cache", lambda model, dtype: asked.append(dtype) or new_cache(model, dtype))
    assert run([[said[0]]])[0] == 0 and asked == ["float32"]


def test_what_cannot_be_compared_is_one_sentence(said, run, tmp_path):
    status, lines, errors = run([[said[0]]], config=(("num_hidden_layers", 24),))
    assert (status, lines) == (2, [])
    assert errors == [f"python tests/official.py: {NANO}: expected the shape of nano, found num_hidden_layers 4"]
    nowhere = tmp_path / "nowhere"
    complaint = f"{nowhere}: expected a checkpoint directory, found no such directory"
    assert run([], nowhere)[2] == [f"python tests/official.py: {complaint}"]
    write_random(tmp_path / "small", SMALL)
    shutil.copy(NANO / "tokenizer.json", tmp_path / "small")  # of more ids than the model has
    status, _, [error] = run([[said[0]]], tmp_path / "small", config=(("vocab_size", 211),))
    assert status == 2 and error.startswith("python tests/official.py: tokens: expected ids from 0 to 210, found ")


def test_the_program_refuses_the_bundled_model():
    done = subprocess.run([sys.executable, "tests/official.py", "nano"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "python tests/official.py: nano: expected the shape of openai/gpt-oss-20b or openai/gpt-oss-120b, found "
        "num_hidden_layers 4, num_local_experts 8, hidden_size 128, vocab_size 992\n")


@pytest.mark.parametrize(("shape", "agreed"), [
    ("20b", [(12, " are blue, I love you, and I love you too"),
             (20, ' the United States." The assistant should respond with the name of the president. The user is asking'
                  ' for')]),
    ("120b", [(2, " are blue"), (2, " the United")]),
])
def test_the_published_facts(shape, agreed):
    """Each shape finds its own; of 20 tokens these are what every way of running the model has in common."""
    facts, text = official.facts_for(SHAPES[shape], "DIR"), tokenizer.load()
    assert facts["name"] == f"openai/gpt-oss-{shape}"
    ids = [official.agreed(entry["continuations"], text) for entry in facts["prompts"]]
    assert [(len(part), text.decode(part)) for part in ids] == agreed

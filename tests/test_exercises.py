"""exercises/: what the check says of right, wrong and unfinished functions, and what the mistakes do to the model."""

import inspect
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from conftest import ROOT

import checkpoint
import gptoss
import harmony
import tokenizer as tokenizers
from exercises import break_it, cases, check, mistakes, solutions

RIGHT = str(ROOT / "exercises" / "solutions.py")
ALL = [*check.EXERCISES, *check.OPTIONAL]


def run(*arguments):
    """The check as a command: exit status, what it prints, what it complains of."""
    command = [sys.executable, str(ROOT / "exercises" / "check.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    return done.returncode, done.stdout, done.stderr


def verdict(name, function):
    return check.check(name, function, inspect.getsourcefile(function))


@pytest.fixture
def mine(tmp_path):
    """Writes a reader's file and checks it in this process: exit status, lines."""
    def write(text, *names, capsys):
        file = tmp_path / "mine.py"
        file.write_text(text)
        return check.main([*names, "--file", str(file)]), capsys.readouterr()
    return write


# ---- The command ----------------------------------------------------------------------------------------------------

def test_as_shipped_nothing_is_written():
    status, said, complaint = run()
    lines = said.splitlines()
    assert status == 1 and complaint == "" and lines[-1] == "0 of 14 right."
    for name, line in zip(check.EXERCISES, lines, strict=False):
        file = f"exercises/{check.EXERCISES[name]}.py"
        at = int(line.removeprefix(f"{name}: not written yet ({file}, line ").removesuffix(")"))
        assert (ROOT / file).read_text(encoding="utf-8").splitlines()[at - 1].strip() == "raise NotImplementedError"


def test_the_solutions_are_right_and_answer():
    status, said, complaint = run("--file", RIGHT)
    assert status == 0 and complaint == ""
    assert [line.split(",")[0] for line in said.splitlines()[:14]] == [f"{name}: right" for name in check.EXERCISES]
    assert "14 of 14 right." in said and "with your bpe and render:" in said and "12 + 30 = 42" in said


def test_all_functions_of_a_reader_answer(capsys):
    """Copies of the project's, which are not the project's to the check: every one of them takes part."""
    copy = mistakes.fresh(gptoss)
    for name in ("bpe", "render", "quantize", "read_safetensors"):
        setattr(copy, name, getattr(solutions, name))
    copy.dequantize = lambda weight: checkpoint.dequantize(weight)
    assert check.report(dict.fromkeys(check.EXERCISES, copy)) == 0
    said = capsys.readouterr().out
    taking_part = [name for name in check.EXERCISES if name not in check.APART]
    assert f"with your {check.listed(taking_part)}:" in said
    assert "12+30: 2+0=2 1+3=4 so 42" in said and "12 + 30 = 42" in said and "Still the project's" not in said


@pytest.mark.parametrize("arguments, complaint", [
    (["atention"], "check.py: NAME: expected one of bpe, render, "),
    (["--file", "nowhere.py"], "check.py: nowhere.py: expected a Python file, found none\n"),
    (["--file", "nano"], "check.py: nano: expected a Python file, found a folder\n"),
])
def test_bad_arguments(arguments, complaint):
    status, said, complained = run(*arguments)
    assert status == 2 and said == "" and complained.startswith(complaint) and complained.count("\n") == 1


@pytest.mark.parametrize("text, line, found", [
    ("x = 1\ndef f(:\n", 2, "SyntaxError: invalid syntax"),
    ("x = 1\n\nimport numpy as np, nothing_here\n", 3, "ModuleNotFoundError: No module named 'nothing_here'"),
    ("def f():\n    return 1 / 0\nf()\n", 2, "ZeroDivisionError: division by zero"),
    ("raise SystemExit\n", 1, "SystemExit"),
])
def test_a_file_that_cannot_be_imported(mine, capsys, text, line, found):
    status, said = mine(text, "bpe", capsys=capsys)
    assert status == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.endswith(f"mine.py, line {line}: expected a file that can be imported, found {found}\n")


# ---- What is said of a function -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ALL)
def test_the_project_is_right(name):
    assert verdict(name, getattr(solutions, name)).status.startswith("right")


RAISING = ("characters, not bytes", "top_k beyond the end", "length as big-endian", "offset and length",
           "metadata as a tensor")  # what any other mistake raises would be a slip in its edit


@pytest.mark.parametrize("mistake", mistakes.MISTAKES, ids=lambda mistake: f"{mistake.function}: {mistake.name}")
def test_each_known_mistake_is_caught_and_named(mistake):
    said = verdict(mistake.function, getattr(mistakes.broken(mistake), mistake.function))
    assert said.status == "wrong"
    assert said.details[1].startswith("it raised ") == (mistake.name in RAISING), said.details
    assert said.details[2:] == (mistakes.sentence(mistake),), said.details


@pytest.mark.parametrize("mistake", [mistake for mistake in mistakes.MISTAKES if mistake.function == "swiglu"],
                         ids=lambda mistake: mistake.name)
def test_a_mistake_is_named_where_it_comes_through(mistake):
    """experts calls the reader's swiglu."""
    said = verdict("experts", mistakes.broken(mistake).experts)
    assert said.status == "wrong" and said.details[2:] == (mistakes.sentence(mistake),)


@pytest.mark.parametrize("name, text, details", [
    ("rms_norm", "def rms_norm(x, weight, eps):\n    y = x * weight\n    return y @ y",
     ["input: 3 tokens of 10 random numbers", "it raised ValueError: matmul: ", ", line 3: return y @ y)"]),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    pass",
     ["result: expected an array float32 [3, 10], found None (is there a return?)"]),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    return x[:2]",
     ["result: expected an array float32 [3, 10], found an array float32 [2, 10]"]),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    return x.astype(int)",
     ["result: expected an array float32 [3, 10], found an array int64 [3, 10]"]),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    y = right(x, weight, eps)\n    y[1, 7] = 5\n    return y",
     ["result[1, 7]: expected ", "found 5 (1 of 30 differ)"]),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    y = right(x, weight, eps)\n    weight *= 2\n    return y",
     ["it changes its argument weight in place"]),
    ("experts", "def experts(x, chosen, weights, layer, limit):\n    y = right(x, chosen, weights, layer, limit)\n"
                "    layer.down_bias[2, 3] ^= 1\n    return y", ["it changes its argument layer in place"]),
    ("rms_norm", "def rms_norm(x, weight):\n    pass",
     ["it raised TypeError: rms_norm() takes 2 positional arguments"]),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    raise SystemExit", ["it raised SystemExit", "line 2"]),
    ("rms_norm", "rms_norm = 3", ["expected a function, found an int"]),
    ("route", "def route(logits, K):\n    return right(logits, K)[0]",
     ["result: expected a tuple (chosen, weights), found an array int64 [4, 3]"]),
    ("route", "def route(logits, K):\n    chosen, weights = right(logits, K)\n    return chosen + 0.0, weights",
     ["chosen: expected an array of whole numbers [4, 3], found an array float64 [4, 3]"]),
    ("rope_frequencies", "def rope_frequencies(config):\n    return right(config)[0], None",
     ["attention factor: expected a number, found None"]),
    ("bpe", "def bpe(piece, ranks):\n    return right(piece, ranks)[:-1]",
     ["result[2]: expected 97 (b'a'), found the end"]),
    ("bpe", "def bpe(piece, ranks):\n    return piece", ["result: expected a list of ids, found a bytes"]),
    ("bpe", "def bpe(piece, ranks):\n    return [piece]", ["result: expected a list of ids, found a bytes in it"]),
    ("render", "def render(messages, tokenizer):\n    return [0, *right(messages, tokenizer)[1:]]",
     ["result[0]: expected 988 (<|start|>), found 0 (\x00)"]),
    ("render", "def render(messages, tokenizer):\n    for message in messages:\n        message.content = ''\n"
               "    return [988]", ["result[1]: expected 115 (s), found the end"]),
    ("render", "def render(messages, tokenizer):\n    ids = right(messages, tokenizer)\n    messages.pop()\n"
               "    return ids",
     ["it changes its argument messages in place"]),
    ("quantize", "def quantize(x):\n    blocks, scales = right(x)\n    return blocks ^ 1, scales",
     ["dequantize(result)[0, 0]: expected "]),
    ("read_safetensors", "def read_safetensors(path):\n    a = right(path)\n    a.pop('u')\n    return a",
     ["result: expected a dict of 3, found no 'u'"]),
    ("read_safetensors", "def read_safetensors(path):\n    return right(path) | {'v': 1}", ["found also 'v'"]),
    ("read_safetensors", "def read_safetensors(path):\n    return right(path) | {'u': 1}",
     ["'u': expected an array uint8 [7], found an int"]),
])
def test_what_is_wrong_is_said(mine, capsys, name, text, details):
    status, said = mine(f"{text}\nfrom exercises.solutions import {name} as right\n", name, capsys=capsys)
    assert status == 1 and said.err == "" and f"{name}: wrong\n" in said.out and f"\n{name} is wrong.\n" in said.out
    for detail in details:
        assert detail in said.out


def test_more_precision_is_no_mistake(mine, capsys):
    status, said = mine("from gptoss import rms_norm as right\n\ndef rms_norm(x, weight, eps):\n"
                        "    return right(x.astype(float), weight, eps)\n", "rms_norm", capsys=capsys)
    assert status == 0 and "rms_norm: right\n" in said.out


def test_what_does_not_matter(mine, capsys):
    """The sign of zero, a constant in logits, a list for a tuple, other whole numbers."""
    status, said = mine("""import numpy as np
from exercises import solutions

def filter_logits(*args):
    return solutions.filter_logits(*args) + np.float32(3)

def route(logits, K):
    chosen, weights = solutions.route(logits, K)
    return [chosen.astype(np.uint8), weights]

def bpe(piece, ranks):
    return np.array(solutions.bpe(piece, ranks), int)

def dequantize(weight):
    return solutions.dequantize(weight) + np.float32(0)

def quantize(x):
    blocks, scales = solutions.quantize(x)
    low, high = (np.where(codes == 8, 0, codes) for codes in (blocks & 15, blocks >> 4))
    return low | high << 4, scales
""", "bpe", "route", "dequantize", "quantize", "filter_logits", capsys=capsys)
    assert status == 0 and "5 of 5 right." in said.out and "12 + 30 = 42" in said.out


def test_what_is_not_there_is_not_written(mine, capsys):
    status, said = mine("def swiglu(gate_up, limit):\n    raise NotImplementedError\n\n"
                        "def experts(x, chosen, weights, layer, limit):\n    return swiglu(x, limit)\n",
                        "rotate", "swiglu", "experts", capsys=capsys)
    lines = said.out.splitlines()
    assert status == 1 and lines[0].startswith("rotate: not written yet (") and "has no function rotate" in lines[0]
    assert lines[1].startswith("swiglu: not written yet (") and lines[1].endswith("mine.py, line 2)")
    assert lines[2].endswith("mine.py, line 2; it calls swiglu)")


def test_what_never_ends_is_stopped(mine, capsys, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.3)
    status, said = mine("def bpe(piece, ranks):\n    while True:\n        pass\n", "bpe", capsys=capsys)
    assert status == 1 and "it was still running after 0.3 seconds (" in said.out and "mine.py, line " in said.out


def test_four_wrong_ones(mine, capsys):
    """The details of three; the fourth is named."""
    names = ["softmax", "swiglu", "dequantize", "rms_norm"]
    status, said = mine("\n".join(f"def {name}(*args):\n    return 1" for name in names), *names, capsys=capsys)
    assert status == 1 and said.out.count("is wrong.") == 3 and "\nWrong, too: rms_norm.\n" in said.out


def test_a_right_function_reaches_those_that_call_it(tmp_path, capsys):
    """Experts in one file take dequantize from the project, until that of another file is right."""
    unpacked = "dequantize(MXFP4(layer.{0}.blocks[e], layer.{0}.scales[e]))"
    experts = inspect.getsource(gptoss.experts)
    for name, x in (("gate_up", "x[t]"), ("down", "h")):
        experts = experts.replace(f"linear({x}, part(layer.{name}, e), layer.{name}_bias[e])",
                                  f"({x} @ {unpacked.format(name)}.T + bf16_to_float32(layer.{name}_bias[e]))")
    (tmp_path / "a.py").write_text("from gptoss import *\n" + experts)
    (tmp_path / "b.py").write_text("from checkpoint import dequantize as right\n\ncalls = []\n\n"
                                   "def dequantize(weight):\n    calls.append(1)\n    return right(weight)\n")
    a, b = check.load(tmp_path / "a.py"), check.load(tmp_path / "b.py")
    assert check.report({"experts": a, "dequantize": b}) == 0
    said = capsys.readouterr().out
    assert "with your experts and dequantize:" in said and "12 + 30 = 42" in said and len(b.calls) > 100


# ---- The solutions --------------------------------------------------------------------------------------------------

def test_bpe_is_tiktokens():
    """Over o200k: every token of the vocabulary comes back as itself, and a text as tiktoken encodes it."""
    o200k = tokenizers.load()
    pattern, ranks = o200k._bpe._pat_str, o200k._bpe._mergeable_ranks
    text = (ROOT / "README.md").read_text(encoding="utf-8") + " größer als 日本語 \U0001f389 don't 12345   \n\n x"
    assert solutions.encode(text, pattern, ranks) == o200k.encode(text)
    some = [token for token in ranks if len(token) < 30][::7]
    assert [token for token in some if solutions.bpe(token, ranks) != [ranks[token]]] == []


def test_training_merges_what_is_most_frequent():
    ranks = solutions.train_bpe({b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 5)
    assert [*ranks][256:] == [b"es", b"est", b"lo", b"low", b"ne"]
    assert solutions.bpe(b"lowest", ranks) == [ranks[b"low"], ranks[b"est"]]


@pytest.mark.parametrize("messages", [args[0] for _, args in cases.of("render")])
def test_render_is_the_librarys(messages):
    assert solutions.render(messages, cases.tokenizer()) == harmony.render(messages, cases.tokenizer())


def test_quantize_keeps_what_has_a_form_in_mxfp4():
    """Every expert of the small model. (Its scales were chosen otherwise: the bytes may differ, the numbers not.)"""
    for layer in gptoss.load(cases.NANO, backend="numpy").layers:
        for weight in (layer.gate_up, layer.down):
            exact = checkpoint.dequantize(weight).reshape(-1, 128)
            np.testing.assert_array_equal(checkpoint.dequantize(solutions.quantize(exact)), exact)


def test_read_safetensors_reads_the_bundled_model():
    found = solutions.read_safetensors(cases.NANO / "model.safetensors")
    expected = checkpoint.Checkpoint(cases.NANO)
    assert found.keys() == expected.tensors.keys()
    for name, array in found.items():
        _, dtype, shape, _ = expected.tensors[name]
        np.testing.assert_array_equal(array, expected.view(name, dtype, shape))


# ---- Mistakes -------------------------------------------------------------------------------------------------------

def test_a_mistake_whose_text_is_not_in_the_source():
    mistake = mistakes.Mistake("odd", "rotate", [("np.split(y", "np.split(z")], "")
    with pytest.raises(ValueError, match=r"odd: source of rotate: expected 'np.split\(y', found none"):
        mistakes.edited(mistake)


def test_names_are_used_once():
    names = [mistake.name for mistake in (*mistakes.MISTAKES, *mistakes.MODEL)]
    assert len(set(names)) == len(names)


def test_every_exercise_has_known_mistakes():
    assert {mistake.function for mistake in mistakes.MISTAKES} == set(check.EXERCISES)


# ---- Break it -------------------------------------------------------------------------------------------------------

HARMLESS = ("gate clamped from below too", "positions from 1", "positions restart")  # without a cache, the last one


@pytest.fixture(scope="module")
def one_thread():
    """break_it.build sets it; the other tests get theirs back."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", break_it.NAMES)
def test_a_mistake_changes_the_logits(one_thread, name):
    """By a ten-thousandth at least; and the harmless ones by less. (Numba's operations are 3e-5 from NumPy's.)"""
    loss, distance, same = break_it.compared(break_it.build(break_it.named(name)))
    if name in HARMLESS:
        assert distance < 1e-4 and same == 1
    else:
        assert distance > 1e-4
    assert loss > 0.007


def test_positions_that_restart_show_with_a_cache_only(one_thread):
    ids = break_it.problems(1)[0][0]
    for mistake, same in ((None, True), (break_it.named("positions restart"), False)):
        model = break_it.build(mistake)
        cache = model.new_cache("float32")
        model(ids[:50], cache)
        assert np.allclose(model(ids[50:], cache), model(ids)[50:], rtol=0, atol=1e-3) == same


def test_a_window_is_wrong_with_a_cache_too(one_thread):
    """In attention alone a window that is too long would be cut to size by Model.attend."""
    ids = break_it.problems(1)[0][0]
    assert len(ids) > 70
    for name in ("no window", "window one too long", "window one too short"):
        steps = []
        for mistake in (None, break_it.named(name)):
            model = break_it.build(mistake)
            cache = model.new_cache("float32")
            model(ids[:-1], cache)
            steps.append(model(ids[-1:], cache))
        assert np.abs(steps[0] - steps[1]).max() > 1e-3, name


def test_right_answers_and_the_intact_model(one_thread):
    model = break_it.build()
    assert break_it.compared(model)[1:] == (0, 1) and break_it.right_answers(model, each=1) >= 9
    assert break_it.right_answers(break_it.build(break_it.named("nibbles swapped")), each=1) == 0


def test_no_true_reply_is_too_long():
    assert len(break_it.problems(3)) == 30
    assert max(len(reply) for _, reply, _ in break_it.problems(3)) < break_it.LONGEST


def test_the_table_of_one_mistake():
    command = [sys.executable, "exercises/break_it.py", "no sink"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].split() == "mistake loss logits off same best right of 30".split()
    assert [line.split()[0] for line in lines[1:3]] == ["no", "none"] and "7.85%" in lines[1] and " 0.00%" in lines[2]
    assert lines[-1].startswith("no sink: You leave out the sink; ")


@pytest.mark.parametrize("command", [["check.py", "bpe"], ["break_it.py", "--list"]])
def test_a_reader_that_leaves_does_no_harm(command):
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, f"exercises/{command[0]}", command[1]], cwd=ROOT, stdout=theirs,
                          stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_list_and_an_unknown_mistake():
    command = [sys.executable, "exercises/break_it.py"]
    done = subprocess.run([*command, "no +1", "--list"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ("no +1 (swiglu)\n- return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)\n"
                           "+ return gate / (1 + np.exp(-1.702 * gate)) * up\n")
    done = subprocess.run([*command, "no -1"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr == "break_it.py: NAME: expected one that --list shows, found no -1\n"

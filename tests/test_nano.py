"""The model that ships, and evals/: what it can do, and that the figures are told right. No PyTorch here."""

import json
import subprocess
import sys

import numba
import pytest
from conftest import ROOT

import evals.__main__ as program
import gptoss
from evals import evaluate
from tokenizer import load as load_tokenizer
from train import tasks, words

NANO = ROOT / "nano"


def test_the_shipped_files_are_small_and_official():
    assert sum(path.stat().st_size for path in NANO.iterdir() if path.is_file()) < 5_000_000
    config = json.loads((NANO / "config.json").read_text())
    assert config["model_type"] == "gpt_oss" and config["quantization_config"]["quant_method"] == "mxfp4"
    assert config["rope_scaling"]["rope_type"] == "yarn" and config["rope_scaling"]["truncate"] is False
    special = load_tokenizer(NANO).special_tokens
    generation = json.loads((NANO / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [special["<|return|>"], special["<|endoftext|>"], special["<|call|>"]]


@pytest.fixture(scope="module")
def shipped():
    before = numba.get_num_threads()
    numba.set_num_threads(1)        # so small a model has no work for a second thread, and waiting for it costs most
    yield gptoss.load(NANO)
    numba.set_num_threads(before)


@pytest.mark.parametrize("effort", ["medium", "high"])
@pytest.mark.parametrize("question, answer", [
    ("What is 12 + 30?", "12 + 30 = 42"),
    ("Which is larger, 9.11 or 9.9?", "9.9 is larger than 9.11."),
    ("How many r's are in strawberry?", 'There are 3 r\'s in "strawberry".'),
])
def test_the_named_examples(shipped, tokenizer, question, answer, effort):
    assert evaluate.reply(shipped, tokenizer, evaluate.prompt(tokenizer, question, effort))[1] == answer


@pytest.mark.parametrize("effort", tasks.EFFORTS)
def test_a_greeting(shipped, tokenizer, effort):
    assert evaluate.reply(shipped, tokenizer, evaluate.prompt(tokenizer, "Hello!", effort))[1] == words.HELLO[0]


@pytest.mark.parametrize("effort, floor", [("medium", 0.8), ("high", 0.85)])
def test_held_out_accuracy(shipped, tokenizer, effort, floor):
    """A floor below the figures of the model card: a wrong kernel or file falls through it."""
    right = [evaluate.measure(shipped, tokenizer, task, effort, each=3)[0] for task in tasks.TASKS]
    assert sum(right) >= floor * 3 * len(tasks.TASKS), dict(zip(tasks.TASKS, right, strict=True))


@pytest.mark.parametrize("effort", tasks.EFFORTS)
def test_the_calculator_is_used_where_it_is_offered(shipped, tokenizer, effort):
    right = [evaluate.call(shipped, tokenizer, task, effort, each=3) for task in tasks.CALCULATED]
    assert sum(right) >= 11, right


def test_both_backends_give_the_same_answers(shipped, tokenizer):
    """A held-out problem of each task, thoughts word for word."""
    plain = gptoss.load(NANO, backend="numpy")
    for task in tasks.TASKS:
        [(_, question)] = evaluate.problems(task, 1)
        prompt = evaluate.prompt(tokenizer, question, "high")
        expected = evaluate.reply(shipped, tokenizer, prompt)
        assert expected[1] and evaluate.reply(plain, tokenizer, prompt) == expected


def test_slips_are_recovered(shipped, tokenizer):
    """The model card: nine of ten slips in the first attempt end in the right answer."""
    right, n = evaluate.recover(shipped, tokenizer, "product", 20)
    assert n == 20 and right >= 15


def test_second_turns(shipped, tokenizer):
    assert evaluate.follow(shipped, tokenizer, "high", 12) >= 9


def test_first_attempts_are_told_from_answers(monkeypatch):
    """A right attempt that is doubted, a wrong one that is mended, one that stays wrong, and one of no shape."""
    drawn = evaluate.problems("sum", 4)
    clean = [tasks.think(problem, "high") for problem, _ in drawn]
    text, check = clean[0].split("\nCheck")
    said = [f"{text}\nCheck: no.\nAgain: {text}\nCheck{check}", "0+0: 0\nCheck: no.\nAgain: " + clean[1],
            "0+0: 0\nCheck: yes.", ""]
    answers = [drawn[0][0].answer, drawn[1][0].answer, "0 + 0 = 0", ""]
    replies = iter(zip(said, answers, (9, 8, 7, 6), strict=True))
    monkeypatch.setattr(evaluate, "reply", lambda *_: next(replies))
    monkeypatch.setattr(evaluate, "prompt", lambda *_: None)
    score = evaluate.measure(None, None, "sum", "high", 4)
    assert score == evaluate.Score(right=2, length=30, first=1, doubted=1)


@pytest.mark.parametrize("task, less, more", [("sum", "low", "medium"), ("product", "medium", "high")])
def test_effort_pays(shipped, tokenizer, task, less, more):
    right = [evaluate.measure(shipped, tokenizer, task, effort, each=12)[0] for effort in (less, more)]
    assert right[1] >= right[0] + 3


def test_wilson():
    """The known interval of 8 of 10: 49.0% to 94.3%."""
    assert evaluate.wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert evaluate.wilson(0, 10)[0] == 0 and evaluate.wilson(10, 10)[1] == 1


# ---- What is said of the figures -------------------------------------------------------------------------------------


def test_the_summary_leaves_out_what_was_not_tried():
    """The only task may be chat, where nothing is checked, slips or can be calculated."""
    score = evaluate.Score(right=8, length=90, first=7, doubted=1)
    results = {(task, effort): score for task in ("chat", "sum") for effort in tasks.EFFORTS}
    only_chat = {key: score for key, score in results.items() if key[0] == "chat"}
    followed = {"low": 5, "medium": 6, "high": 10}
    second_turns = ("Second turns that build on the first: 50% (24–76) at low effort, 60% (31–83) at medium effort, "
                    "100% (72–100) at high effort.")
    assert list(evaluate.summary(only_chat, [], followed, [], 10, 2)) == [second_turns]
    assert list(evaluate.summary(results, [(3, 4)], followed, [2, 2, 1], 10, 2)) == [
        "High effort: of 4 slips put into its first attempt 75% (30–95) still ended in the right answer; 1 of 7 right "
        "first attempts were doubted.",
        "What the check is worth (chat left out): 70% (40–89) of the first attempts were right, 80% (49–94) of the "
        "answers.",
        second_turns,
        "With a calculator offered: 83% (44–97) of 6 problems were handed to it and answered with what it said.",
    ]
    assert list(evaluate.summary(results, [(0, 0)], followed, [], 10, 2))[0].startswith("What the check is worth")


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["chat"], ["sum", "chat"]])
def test_command(names):
    done = subprocess.run([sys.executable, "-m", "evals", *names, "--each", "1"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["| task", *(f"| {name}" for name in names), "| **all**"]
    assert "\nSecond turns that build on the first: " in done.stdout
    assert ("With a calculator offered" in done.stdout) == ("sum" in names)


@pytest.mark.parametrize(("args", "said"), [
    (["--model", "nowhere"], "nowhere: expected a checkpoint directory, found no such directory"),
    (["--model", "docs"], "docs/config.json: expected a file, found no such file"),
    (["--each", "0"], "--each: expected an integer of at least 1, found 0"),
    (["swim"], "TASK: expected one of sum, difference, "),
])
def test_command_refuses(args, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["evals", *args])
    with pytest.raises(SystemExit) as caught:
        program.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and last.startswith("python -m evals: ") and said in last


def test_evaluating_needs_no_pytorch():
    code = "import sys, evals.__main__; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

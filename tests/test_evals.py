"""Evaluation on problems from files, by a model here or a server: what counts as right, how sure one can be of a share,
and that nothing of a long run is lost. (tests/test_nano.py has the small model's own figures.) The problems are made up
in the published formats: the sets themselves are not ours to give away."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from service import running

import evals.__main__ as program
import gptoss
import serve as service
from conversation import LocalEngine
from evals import evaluate, report, sets
from harmony import Message

AIME = r"""{"question": "What is 6 times 7?", "answer": "42"}
{"question": "An angle of a half turn, in degrees?", "answer": "180^\\circ"}

{"question": "What is $\\frac{9}{3}$ {exactly}?", "answer": 3}
"""
GPQA = """Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3
a,"Which gas do
plants take up?",carbon dioxide,oxygen,nitrogen,"argon, mostly"
b,What is 2 + {2}?,four,three,five,six
"""
SUMS = """{"question": "What is 12 + 30?", "answer": 42}
{"question": "Hello!", "answer": "No such greeting."}
{"messages": [{"role": "user", "content": "What is 7 + 5?"}, {"role": "assistant", "content": "7 + 5 = 12"}]}
"""


@pytest.fixture
def file(tmp_path):
    """Writes a file, and gives its path."""
    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


# ---- What counts as right -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "found"), [
    ("**Answer:** C, and not A", "C"), ("_Answers –_ d", "D"), ("*Answer* B", "B"),
    ("A fine question.\n  **Answer**: **B**", "B"), ("answer c", "C"), ("Answer:Because", "B"),
    ("So the answer: (b), not (C)", "B"), ("Answers - ( D )", "D"),
    ("I think the answer – C holds", "C"), ("the answer is C (A)", "A"),
    ("(A) fails, so option D", "D"), ("My choice: c", "C"),
    (r"(A) is wrong: $\boxed{\text{B } 2.1}$", "B"), (r"\boxed{\textbf{(C)}}", "C"), (r"\boxed{7} or [D]", "D"),
    ("**C** is it, as (B) shows", "B"), ("f(A)", None), ("see [ C ]", "C"),
    (r"\textbf{A} or **D**", "D"), ("x*C*", None), ("__B__", "B"),
    (r"it is \textbf{ (A)}", "A"), ("it is **B) the second one** of C", "B"), ("it is *B) cut", None),
    ("D. The last", "D"), ("\n **A is right", "A"), ("Because it rains", "B"), ("because it rains", None), ("", None),
])
def test_the_letter_of_an_option(text, found):
    assert sets.letter(text) == found


@pytest.mark.parametrize(("text", "found"), [
    (r"First \boxed{41}, then $\boxed{42}$.", 42), (r"\framebox{7} and no more than 9", 7), (r"\boxed{x, 12}", 12),
    ("\\boxed{\n 007 }", 7), (r"\boxed{5} \boxed{}", 5), (r"\boxed{} of 8", 8), (r"\boxed{\text{(70)}} 70", None),
    (r"\boxed{3.0}", None), (r"\boxed{-4}", -4), ("between 3 and 11", 11), ("1.25", 25), ("none", None), ("", None),
])
def test_the_integer_in_the_last_box(text, found):
    assert sets.boxed(text) == found


@pytest.mark.parametrize(("text", "found"), [
    ("12 + 30 = 42", 42), ("It is 1,234.50 dollars.", 1234.5), ("from 3 to -5", -5), ("−7", -7), ("pages 8-9", 9),
    ("2,3", 3), ("1,2345", 2345), ("It is 0.10", 0.1), ("9.", 9), ("none", None),
])
def test_the_last_number(text, found):
    assert sets.number(text) == (found if found is None else sets.Decimal(str(found)))


def test_words_are_compared_but_for_the_space_around_them():
    problem = sets.Problem("a:1", 0, 0, [], "9.9 is larger.", "words")
    assert problem.right("\n9.9 is larger. ") and not problem.right("9.9 is larger") and not problem.right("")


# ---- Problems from files --------------------------------------------------------------------------------------------

def test_aime(file):
    two = file("I.jsonl", AIME), file("II.jsonl", '{"question": "And 2 times 5?", "answer": 10}')
    problems = sets.problems("aime", two)
    assert len(problems) == 4 * 8 and [problem.answer for problem in problems[:5]] == [42, 180, 3, 10, 42]
    assert [(problem.number, problem.repeat) for problem in problems[3:6]] == [(3, 0), (0, 1), (1, 1)]
    assert problems[2].history == [Message("user", "\nWhat is $\\frac{9}{3}$ {exactly}?\nPlease reason step by step, "
                                                   "and put your final answer within \\boxed{}.\n")]
    assert problems[0].right(r"It is \boxed{42}.") and not problems[0].right("4.2")
    assert sets.defaults("aime") == sets.defaults("gpqa") == (1.0, 8)


def test_gpqa_orders_its_options_as_the_harness_does(file):
    """random.Random(0) draws [3, 1, 0, 2], [3, 1, 2, 0], [2, 3, 0, 1], [2, 0, 3, 1]: a repeat has another order."""
    problems = sets.problems("gpqa", [file("g.csv", GPQA)], repeats=2)
    assert [problem.answer for problem in problems] == ["C", "D", "C", "B"]
    [asked] = problems[1].history
    assert asked.content == ("What is 2 + {2}?\n\n(A) six\n(B) three\n(C) five\n(D) four\n\nExpress your final answer "
                             "as the corresponding option 'A', 'B', 'C', or 'D'.")
    assert problems[0].history[0].content.startswith("Which gas do\nplants take up?\n\n(A) argon, mostly\n(B) oxygen\n")
    assert sets.problems("gpqa", [file("g.csv", GPQA)], each=1, repeats=2) == problems[::2]  # the same orders


def test_json_lines(file):
    """The question is the last one by the user; what was thought before it is gone, as in a chat."""
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7 + 5?"},
            {"role": "assistant", "reasoning": "carry", "content": "12"}, {"role": "user", "content": "and times 2?"},
            {"role": "assistant", "reasoning": "double", "content": "It is 24."}]
    path = file("a.jsonl", SUMS + json.dumps({"messages": said}) + '\n{"question": "1?", "answer": "1,000.0"}')
    problems = sets.problems("jsonl", [path])
    assert [(problem.answer, problem.rule) for problem in problems] == [
        (42, "number"), ("No such greeting.", "words"), ("7 + 5 = 12", "words"), ("It is 24.", "words"),
        (1000, "number")]
    assert problems[3].instructions == "Be brief." and problems[3].history == [
        Message("user", "7 + 5?"), Message("assistant", "12", channel="final"), Message("user", "and times 2?")]


@pytest.mark.parametrize(("task", "text", "said"), [
    ("aime", "", ": expected a problem, found none"),
    ("aime", AIME + "{torn", ":5: expected a JSON object, found {torn"),
    ("aime", AIME + '{"question": "", "answer": 1}', ":5: question: expected a text, found ''"),
    ("aime", '{"question": "Q", "answer": "x7"}', ":1: answer: expected an integer, found 'x7'"),
    ("aime", '{"question": "Q", "answer": 7.5}', ":1: answer: expected an integer, found 7.5"),
    ("gpqa", "Question,Correct Answer\n", ":1: expected a column Incorrect Answer 1, found Question, Correct Answer"),
    ("gpqa", "", ":1: expected a column Question, found none"),
    ("gpqa", GPQA + "c,What?,yes,no\n", ":5: Incorrect Answer 2: expected a text, found None"),
    ("jsonl", "\n[1]", ":2: expected a JSON object, found [1]"),
    ("jsonl", '{"question": "Q"}', ":1: answer: expected a text or a number, found None"),
    ("jsonl", '{"question": "Q", "answer": NaN}', ":1: answer: expected a text or a number, found nan"),
    ("jsonl", '{"question": "Q", "answer": true}', ":1: answer: expected a text or a number, found True"),
    ("jsonl", '{"messages": [{"role": "user", "content": "Q"}]}',
     ":1: messages: expected a question by the user and an answer by the assistant at the end, found user"),
    ("jsonl", '{"messages": [{"role": "judge"}]}', ":1: messages[0].role: expected user, assistant"),
    ("jsonl", '{"messages": [], "tools": [1]}', ":1: tools: expected none, because none can be called here, found [1]"),
])
def test_a_bad_line_is_named(task, text, said, file):
    path = file("bad", text)
    with pytest.raises(ValueError) as caught:
        sets.problems(task, [path])
    assert str(caught.value).startswith(f"{path}{said}")


def test_a_question_longer_than_the_context(tokenizer):
    problem = sets.Problem("a.jsonl:3", 0, 0, sets.asked("12 + 30 " * 50), 42, "number")
    with pytest.raises(ValueError, match=r"^a.jsonl:3: expected a question that fits into 100 tokens of context, fou"):
        sets.trial("jsonl", "low", problem, tokenizer, 100)


# ---- How sure one can be --------------------------------------------------------------------------------------------

def test_the_clustered_error_by_hand():
    """Shares 1, 0 and 1/2 of two answers each: residual sums 1, -1, 0; error^2 = 3/2 * 2 / 6^2."""
    found = report.estimate([[1, 1], [0, 0], [1, 0]])
    assert found.share == 0.5 and found.error == pytest.approx((3 / 2 * 2 / 36) ** 0.5)
    assert found[2:] == pytest.approx(report.wilson(1.8, 3.6))  # worth 6 * (0.25 / 5) / (1 / 12) = 3.6 single answers


def test_single_answers_have_the_error_and_the_interval_of_a_share():
    found = report.estimate([[1]] * 8 + [[0]] * 2)
    assert found.error == pytest.approx((0.8 * 0.2 / 9) ** 0.5) and found[2:] == pytest.approx(report.wilson(8, 10))


def test_where_nothing_varies_problems_are_counted():
    assert report.estimate([[1] * 8] * 5) == (1, 0, *report.wilson(5, 5))
    assert report.estimate([[1, 0]]) == (0.5, None, *report.wilson(0.5, 1))
    assert report.estimate([[1, 0]] * 4)[1:] == (0, *report.wilson(4, 8))  # no more than all answers


def test_the_clustered_error_is_that_of_repeated_evaluations():
    """400 evaluations of 30 problems of uniform difficulty q, 8 answers each: Var(share) = (Var(q) + E[q(1 - q)] / 8)
    / 30, with Var(q) = 1/12 and E[q(1 - q)] = 1/6. Taken for independent, the answers would promise half that error."""
    rng = np.random.default_rng(3)
    difficulties = rng.random((400, 30, 1))
    found = [report.estimate(groups.tolist()) for groups in rng.random((400, 30, 8)) < difficulties]
    true = ((1 / 12 + 1 / 6 / 8) / 30) ** 0.5
    assert np.mean([one.error for one in found]) == pytest.approx(true, rel=0.02)  # a mean of 400 that vary by 8%: 0.4%
    assert true > 1.7 * (0.25 / 240) ** 0.5
    covered = np.mean([one.low <= 0.5 <= one.high for one in found])
    assert 0.95 == pytest.approx(covered, abs=0.033)  # three standard errors of 400


def test_the_table_warns_of_answers_that_were_cut_off():
    def said(problem, right, cut):
        return dict(task="aime", effort="high", problem=problem, right=right, thought=1500, tokens=2000, cut=cut)

    whole, cut = [said(0, True, False), said(1, False, False)], [said(0, True, False), said(1, False, True)]
    assert report.table(report.figures(whole)).splitlines()[2:] == [
        "| aime | high | 2 | 2 | 50.0% ± 50.0 | 9.5–90.5 | 1,500 | 2,000 | 0.0% |"]
    assert report.table(report.figures(cut)).splitlines()[2:] == [
        "| aime | high | 2 | 2 | 50.0% ± 50.0 | 9.5–90.5 | 1,500 | 2,000 | 50.0% |", "",
        "Warning: 1 of 2 answers of aime at high effort were cut off by the limit of tokens, and most of these count "
        "as wrong for no other reason."]


# ---- The log --------------------------------------------------------------------------------------------------------

HEAD = {"model": "m", "effort": ["low"]}
ANSWER = {"task": "jsonl", "effort": "low", "problem": 0, "repeat": 0, "right": True, "final": "é", "thought": 0,
          "tokens": 3, "cut": False}


def test_the_log_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "a.answers.jsonl"
    report.Log(path, HEAD).add(ANSWER)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": "jso')
    log = report.Log(path, HEAD)
    assert log.answers == {("jsonl", "low", 0, 0): ANSWER}
    log.add(ANSWER | {"problem": 1})
    assert path.read_bytes().startswith(whole) and len(report.Log(path, HEAD).answers) == 2


@pytest.mark.parametrize(("before", "said"), [
    (HEAD | {"effort": ["high"]}, ': effort: expected this command\'s ["low"], found ["high"] of another command; give '
                                  "another --json FILE"),
    ({"question": "Q"}, ": expected the answers of an evaluation, found another file"),
])
def test_the_file_of_another_command_is_refused(before, said, tmp_path):
    path = tmp_path / "a"
    path.write_text(json.dumps(before) + "\n")
    with pytest.raises(ValueError) as caught:
        report.Log(path, HEAD)
    assert str(caught.value) == f"{path}{said}" and json.loads(path.read_text()) == before


@pytest.mark.parametrize(("text", "said"), [
    ("{}", ":1: expected a JSON object, found "), ("words\n", ":1: expected a JSON object, found words"),
    (json.dumps(HEAD) + "\n[]\n", ":2: expected a JSON object, found []"),
    (json.dumps(HEAD) + '\n{"task": "sum"}\n', ":2: effort: expected a text or a number, found None"),
])
def test_a_file_that_is_no_log_is_left_alone(text, said, file):
    path = file("a", text)
    with pytest.raises(ValueError) as caught:
        report.Log(path, HEAD)
    assert path.read_text() == text and (text == "{}" or str(caught.value).startswith(f"{path}{said}"))


# ---- The command ----------------------------------------------------------------------------------------------------

def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["evals", *map(str, args)])
    program.main()


@pytest.mark.parametrize("small", [512, 0], ids=["in processes", "as a large model"])
def test_a_model_here(small, file, tmp_path, monkeypatch, capsys):
    """The same answers either way; a second run has nothing to ask."""
    monkeypatch.setattr(program, "SMALL", small)
    out = tmp_path / "a.json"
    options = ["jsonl", "--data", file("q.jsonl", SUMS), "--effort", "high", "--backend", "numpy", "--json", out]
    run(monkeypatch, *options, "--picture", tmp_path / "a.png")
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].startswith("| jsonl | high | 3 | 3 | 66.7% ± 33.3 | 20.8–93.9 | ")
    [row] = json.loads(out.read_text())["results"]
    assert (row["problems"], row["answers"], row["cut"]) == (3, 3, 0) and 0 < row["thought"] < row["tokens"] - 5
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(program, "answers", lambda waiting, *_: (_ for _ in waiting))  # and would break at the first
    run(monkeypatch, *options)
    assert capsys.readouterr().out == printed


def test_an_adapter_goes_to_the_model(file, monkeypatch):
    """Here and in a measuring process; what becomes of it there is adapter.py's business."""
    adapted = []
    monkeypatch.setattr(gptoss, "adapt", lambda layers, directory, config: adapted.append(str(directory)))
    monkeypatch.setattr(program, "answers", lambda waiting, *_: ((trial, {"final": "42", "thought": 0, "tokens": 3,
                                                                         "cut": False}) for trial in waiting))
    run(monkeypatch, "jsonl", "--data", file("q.jsonl", SUMS), "--adapter", "here", "--backend", "numpy")
    evaluate.begin(ROOT / "nano", "numpy", "there")
    assert adapted == ["here", "there"]


def test_a_server(tokenizer, nano, file, monkeypatch, capsys):
    """`python serve.py` with the small model, two requests at once; a bundled task beside the file's."""
    with running(service.app(LocalEngine(nano), tokenizer)) as url:
        run(monkeypatch, "jsonl", "chat", "--data", file("q.jsonl", SUMS), "--effort", "low,medium", "--each", "2",
            "--server", url, "--model", ROOT / "nano", "--parallel", "2")
    rows = [line.split(" | ")[:5] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:4] for row in rows] == [[f"| {task}", effort, "2", "2"] for task in ("jsonl", "chat")
                                         for effort in ("low", "medium")]
    assert rows[1][4] == "50.0% ± 50.0"  # 12 + 30 takes a thought


def test_a_limit_of_tokens_is_told(file, monkeypatch, capsys):
    run(monkeypatch, "jsonl", "--data", file("q.jsonl", SUMS), "--effort", "high", "--max-tokens", "8", "--repeats",
        "2", "--temperature", "1", "--backend", "numpy")
    out = capsys.readouterr().out
    assert "| 3 | 6 | 0.0% ± 0.0 |" in out and "| 8 | 100.0% |" in out and "Warning: 6 of 6 answers" in out


def test_ctrl_c_loses_nothing(file, tmp_path):
    command = [sys.executable, "-m", "evals", "sum", "--each", "200", "--backend", "numpy"]
    process = subprocess.Popen([*command, "--json", tmp_path / "a.json"], cwd=ROOT, start_new_session=True,
                               stderr=subprocess.PIPE, text=True)
    log = tmp_path / "a.answers.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    lines = log.read_bytes().splitlines()
    assert process.returncode == 130 and len(lines) > 3 and all(map(json.loads, lines))
    assert said.splitlines()[-1] == f"{log}: {len(lines) - 1} of 600 answers; the same command goes on from there"
    assert "Traceback" not in said


@pytest.mark.parametrize(("args", "said"), [
    (["aime"], "--data: expected a FILE for one TASK of aime, gpqa, jsonl, found 0 for aime"),
    (["sum", "--data", "x"], "--data: expected a FILE for one TASK of aime, gpqa, jsonl, found 1 for none"),
    (["aime", "gpqa", "--data", "x"], "--data: expected a FILE for one TASK of aime, gpqa, jsonl, found 1 for aime, "),
    (["aime", "--data", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
    (["sum", "--effort", "low,hard"], "--effort: expected some of low,medium,high, found low,hard"),
    (["sum", "--repeats", "0"], "--repeats: expected an integer of at least 1, found 0"),
    (["sum", "--temperature", "-1"], "--temperature: expected a number of at least 0, found -1.0"),
    (["sum", "--json", "docs"], "--json: expected a name for a file, found docs"),
    (["sum", "--json", "nowhere/a.json"], "nowhere/a.answers.jsonl: No such file or directory"),
    (["sum", "--picture", "a.gif"], "--picture: expected a file .png, .svg, .pdf, found a.gif"),
    (["sum", "--picture", "nowhere/a.png"], "--picture: expected a file in a directory that is there, found nowhere"),
    (["sum", "--server", "localhost"], "the server's address: expected one like http://host:8000, found localhost"),
    (["sum", "--server", "http://localhost:9", "--adapter", "x"], "--adapter: expected a model on this machine, f"),
    (["sum", "--effort", "low", "--server-model", "m"], "--server-model: expected --server with it, found none"),
])
def test_what_cannot_be_is_said_in_one_sentence(args, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *args, "--model", "nano")
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and last.startswith(f"python -m evals: {said}")

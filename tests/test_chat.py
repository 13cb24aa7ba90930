"""The terminal chat: what a person sees, with the bundled model. (What is said in it: test_conversation.py.)"""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chat
import gptoss
import tokenizer as tokenizers
from conversation import Conversation, LocalEngine

ROOT = Path(__file__).resolve().parent.parent
QUESTION, ANSWER = "What is 12 + 30?", "12 + 30 = 42"  # README's example


# ---- the command ----------------------------------------------------------------------------------------------------


def run(*arguments, input=None, **options):
    return subprocess.run([sys.executable, "chat.py", *arguments], cwd=ROOT, input=input, capture_output=True,
                          timeout=300, **options)


def test_the_bundled_model_answers_the_example():
    """The golden text: the same twice, whatever the day."""
    for _ in range(2):
        done = run("--prompt", QUESTION, "--temperature", "0")
        assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, ANSWER + "\n", "")


@pytest.mark.parametrize("day", ["2024-02-29", "2025-08-05", "2026-11-24", "2027-12-31", "2030-06-15"])
@pytest.mark.parametrize("effort", ["medium", "high"])
def test_the_answer_does_not_depend_on_the_day(day, effort):
    engine = LocalEngine(gptoss.load(ROOT / "nano"))
    conversation = Conversation(engine, tokenizers.load(ROOT / "nano"), effort=effort, date=day)
    pieces = conversation.ask(QUESTION, temperature=0)
    assert "".join(text for channel, text in pieces if channel == "final") == ANSWER


def in_terminal(*arguments):
    """What `python chat.py` shows a person."""
    controller, terminal = pty.openpty()
    child = subprocess.Popen([sys.executable, "chat.py", *arguments], cwd=ROOT, stdin=terminal, stdout=terminal,
                             stderr=terminal, env=os.environ | {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "100"})
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(controller)
    assert child.wait() == 0
    return shown.decode()


def test_a_terminal_shows_the_thoughts_dim_and_the_answer_bright():
    shown = in_terminal("--prompt", QUESTION, "--temperature", "0", "--effort", "high", "--stats")
    dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown))
    bold = "".join(re.findall(r"\x1b\[1m(.*?)\x1b\[0m", shown))
    assert bold == ANSWER and len(dim) > len(bold)
    assert re.search(r"\d+ tokens of prompt, .* tokens/s", shown)


def test_control_characters_do_not_reach_the_terminal(capsys):
    screen = chat.Screen()
    screen.terminal = True
    screen.show([("final", "a\x1b[2Jb\x07\tc\n")])
    shown = capsys.readouterr().out
    assert "a[2Jb   c" in shown and "\x1b[2J" not in shown and "\x07" not in shown


def test_a_pipe_gets_the_answer_alone(capsys):
    reply = {"analysis": "Hm.", "commentary": "Wait.", "call": "{}", "final": "So.", "note": "Oh."}
    chat.Screen().show(reply.items())
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("So.\n", "chat.py: Oh.\n")


def test_commands_and_questions_through_a_pipe():
    lines = ["/help", "/effort high", "/effort huge", "/stats", QUESTION, "/reset", "/nonsense", "", QUESTION, "/exit",
             "not read"]
    done = run("--temperature", "0", input="\n".join(lines).encode())
    assert done.returncode == 0 and done.stdout.decode() == f"{ANSWER}\n{ANSWER}\n"
    said = done.stderr.decode()
    for expected in ("/effort low|medium|high   how long to think before answering (now: medium)", "effort high",
                     "/effort: expected low, medium, high, found 'huge'", "tokens/s", "The conversation is forgotten.",
                     "/nonsense: no such command"):
        assert expected in said
    # After /reset the same is asked: the model has read all of it, and reads the last token again for its logits.
    assert re.findall(r"(\d+) tokens of prompt, (\d+) of them known", said) == [("96", "0"), ("96", "95")]


def test_a_bad_line_in_a_pipe_does_not_end_the_conversation():
    done = run("--temperature", "0", input=b"\xff\xfe\n" + QUESTION.encode() + b"\n")
    assert (done.returncode, done.stdout.decode()) == (0, ANSWER + "\n")
    assert "surrogate" in done.stderr.decode()


@pytest.mark.parametrize("arguments, message", [
    (["--model", "nowhere"], "nowhere: expected a checkpoint directory, found no such directory"),
    (["--model", "docs"], "docs/config.json: no such file"),
    (["--effort", "huge"], "argument --effort: invalid choice: 'huge'"),
    (["--temperature", "-1"], "argument --temperature: expected a number of at least 0, found '-1'"),
    (["--temperature", "nan"], "argument --temperature: expected a number of at least 0, found 'nan'"),
    (["--top-p", "0"], "argument --top-p: expected a number from 1e-09 to 1, found '0'"),
    (["--seed", "x"], "argument --seed: expected an integer of at least 0, found 'x'"),
    (["--max-tokens", "0"], "argument --max-tokens: expected an integer of at least 1, found '0'"),
    (["--prompt", ""], "--prompt: expected a text, found nothing"),
    (["--prompt", b"\xff"], "surrogate"),
    (["--prompt", "a b " * 5000], "at most 4096, the context"),
    (["--frob"], "unrecognized arguments: --frob"),
], ids=str)
def test_bad_input_gets_one_line_and_status_2(arguments, message):
    extra = [] if "--prompt" in arguments else ["--prompt", "Hi"]
    done = run(*arguments, *extra)
    said = done.stderr.decode()
    assert done.returncode == 2 and done.stdout == b""
    assert message in said and said.startswith("chat.py: ") and said.count("\n") == 1


def test_system_instructions_reach_the_model():
    done = run("--prompt", QUESTION, "--system", "x " * 4096)
    assert done.returncode == 2 and "at most 4096, the context" in done.stderr.decode()

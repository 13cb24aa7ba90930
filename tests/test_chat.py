"""The terminal chat as a command. (What is said in it: test_conversation.py; a person at it: test_terminal.py.)"""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console

import chat
import gptoss
import terminal
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


@pytest.mark.parametrize(("text", "shown"), [
    ("<answer>\n42\n</answer>", "<answer>\n42\n</answer>"), ("<p>42</p>", "<p>42</p>"), ("<!-- x -->b", "<!-- x -->b"),
    ("vector<int> v", "vector<int> v"), ("see ![it](http://a.b) here", "see !it (http://a.b) here"),
    ("[label]: foo", "[label]: foo"), ("one\ntwo", "one\ntwo"), ("&#8238;x", "&#8238;x"), ("**b** `code`", "b code"),
    ("25\u202f\u00b0C, 10\u00a0000", "25 \u00b0C, 10 000"), ("2 * 3 * 4", "2 * 3 * 4"), ("| a |\n|-|\n| 1 |", "a"),
])
def test_markdown_loses_no_text(text, shown, capsys):
    rich.console.Console(width=80).print(terminal.markdown(terminal.clean(text)))
    assert "\n".join(line.strip() for line in capsys.readouterr().out.strip().split("\n")).startswith(shown)


def test_nothing_hides_in_what_is_to_be_approved():
    code = "# harmless \rimport evil\u202e\u200b\x1b[8m"
    assert terminal.revealed(code) == "# harmless \\rimport evil\\u202e\\u200b\\x1b[8m"


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
    for expected in ("/effort low|medium|high     how long to think before answering", "effort high",
                     "/effort: expected low, medium, high, found 'huge'", "tokens/s", "The conversation is forgotten.",
                     "/nonsense: no such command"):
        assert expected in said
    # After /reset the same is asked: the model has read all of it, and reads the last token again for its logits.
    assert re.findall(r"(\d+) tokens of prompt, (\d+) of them known", said) == [("96", "0"), ("96", "95")]


def test_a_pipe_is_put_after_the_prompt():
    done = run("--max-tokens", "1", "--raw", "--prompt", "What is this?", input=b"12 + 30\n")
    assert done.returncode == 0 and "<|start|>user<|message|>What is this?\n\n12 + 30<|end|>" in done.stdout.decode()


def test_a_reply_in_json():
    """One object for each question, with the thoughts and the call."""
    done = run("--temperature", "0", "--json", "--effort", "high", input=f"{QUESTION}\n{QUESTION}\n".encode())
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["content"] == second["content"] == ANSWER and first["reasoning"] and first["notes"] == []
    assert first["role"] == "assistant" and first["messages"] == [
        {"role": "assistant", "content": ANSWER, "reasoning": first["reasoning"]}]
    assert 0 < first["usage"]["completion_tokens"] < first["usage"]["prompt_tokens"] < second["usage"]["prompt_tokens"]


def test_a_function_in_a_pipe(tmp_path):
    """Called, and its result used; what it does wrong is told to the model and to nobody else."""
    file = tmp_path / "calc.py"
    file.write_text('def calculator(expression: str) -> str:\n    """Computes an expression."""\n    return "944"\n')
    done = run("--temperature", "0", "--tools", file, "--prompt", "What is 23 * 41?")
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "23 \u00d7 41 = 944\n", "")
    file.write_text(file.read_text().replace('return "944"', "1 / 0"))
    done = run("--temperature", "0", "--tools", file, "--json", "--prompt", "What is 23 * 41?")
    told = [message["content"] for message in json.loads(done.stdout)["messages"] if message["role"] == "tool"]
    assert told[0].startswith("Error: ZeroDivisionError: division by zero (calc.py, line 3)") and not done.stderr


def test_an_answer_of_a_schema(tmp_path):
    schema = {"type": "object", "properties": {"answer": {"enum": [1, 2]}}, "required": ["answer"],
              "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    done = run("--temperature", "0", "--schema", tmp_path / "schema.json", "--prompt", QUESTION)
    assert done.returncode == 0 and json.loads(done.stdout)["answer"] in (1, 2)


def test_a_conversation_goes_on(tmp_path):
    """--load brings back what was said, the effort and the instructions; options come before the file's."""
    lines = [QUESTION, f"/save {tmp_path}/talk.json", "/nonsense"]
    run("--temperature", "0", "--effort", "low", "--system", "Be brief.", input="\n".join(lines).encode())
    done = run("--temperature", "0", "--load", tmp_path / "talk.json", "--raw", "--prompt", "Hello!")
    text = done.stdout.decode()
    assert "Reasoning: low" in text and "Be brief." in text and f"{QUESTION}<|end|>" in text and ANSWER in text
    assert text.rstrip().endswith("<|return|>")
    done = run("--load", tmp_path / "talk.json", "--effort", "high", "--raw", "--prompt", "Hello!")
    assert "Reasoning: high" in done.stdout.decode()


def test_a_bad_line_in_a_pipe_does_not_end_the_conversation():
    done = run("--temperature", "0", input=b"\xff\xfe\n" + QUESTION.encode() + b"\n")
    assert (done.returncode, done.stdout.decode()) == (0, ANSWER + "\n")
    assert "surrogate" in done.stderr.decode()


@pytest.mark.parametrize("arguments, message", [
    (["--model", "nowhere"], "nowhere: expected a checkpoint directory, found no such directory"),
    (["--model", "docs"], "docs/config.json: expected a file, found no such file"),
    (["--effort", "huge"], "argument --effort: invalid choice: 'huge'"),
    (["--temperature", "-1"], "argument --temperature: expected a number of at least 0, found '-1'"),
    (["--temperature", "nan"], "argument --temperature: expected a number of at least 0, found 'nan'"),
    (["--top-p", "0"], "argument --top-p: expected a number from 1e-09 to 1, found '0'"),
    (["--seed", "x"], "argument --seed: expected an integer of at least 0, found 'x'"),
    (["--max-tokens", "0"], "argument --max-tokens: expected an integer of at least 1, found '0'"),
    (["--prompt", ""], "--prompt: expected a text, found nothing"),
    (["--prompt", b"\xff"], "surrogate"),
    (["--prompt", "a b " * 5000], "fewer than 4096 tokens, the context"),
    (["--frob"], "unrecognized arguments: --frob"),
    (["--load", "nowhere.json"], "nowhere.json: expected a saved conversation, found no such file"),
    (["--load", "nano/config.json"], "nano/config.json: messages: expected a list, found None"),
    (["--schema", "nowhere.json"], "nowhere.json"),
    (["--schema", "README.md"], "README.md: expected a JSON schema, found Expecting value"),
    (["--schema", "nano/config.json"], "schema: expected keywords that a grammar can enforce, found architectures"),
    (["--tools", "nowhere.py"], "nowhere.py: expected a Python file, found none"),
    (["--tools", "README.md"], "README.md: expected a file that can be imported, found SyntaxError"),
    (["--browser", "nowhere"], "nowhere"),
    (["--apply-patch", "nowhere"], "nowhere: expected a folder, found none"),
    (["--server", "nowhere"], "the server's address: expected one like http://host:8000, found nowhere"),
    (["--server-model", "m"], "--server-model: expected --server with it, found none"),
    (["--server", "http://127.0.0.1:9", "--model", "nano"], "http://127.0.0.1:9: expected an answer, found Connec"),
], ids=str)
def test_bad_input_gets_one_line_and_status_2(arguments, message):
    extra = [] if "--prompt" in arguments else ["--prompt", "Hi"]
    done = run(*arguments, *extra)
    said = done.stderr.decode()
    assert done.returncode == 2 and done.stdout == b""
    assert message in said and said.startswith("chat.py: ") and said.count("\n") == 1


def test_system_instructions_reach_the_model():
    done = run("--prompt", QUESTION, "--system", "x " * 4096)
    assert done.returncode == 2 and "fewer than 4096 tokens, the context" in done.stderr.decode()

"""The chat as a person has it: the real program in a terminal, with the small model, its calculator, and servers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from person import Person
from scripted import Scripted
from servers import COMPLETIONS, CUT, WAIT, vllm, vllm_event

import tokenizer as tokenizers

QUESTION, ANSWER = "What is 12 + 30?", r"12 \+ 30 = 42"
READY = r"Type a question, or /help.*effort \w+   context"
CALCULATOR = '''
import time

def calculator(expression: str) -> str:
    """Computes an expression."""
    time.sleep({seconds})
    return str(eval(expression, {{"__builtins__": {{}}}}))
'''


@pytest.fixture
def person(tmp_path):
    """Starts `python chat.py` with these arguments, and ends it with the test."""
    people = []

    def start(*arguments, **options):
        people.append(Person("chat.py", "--temperature", "0", *arguments, XDG_STATE_HOME=str(tmp_path), **options))
        people[-1].sees(READY)
        return people[-1]

    yield start
    for one in people:
        one.__exit__()


@pytest.fixture
def patient(tmp_path):
    """The small model with a context of 131,072 tokens: long enough for something to take long."""
    shutil.copytree(ROOT / "nano", tmp_path / "patient")
    config = json.loads((tmp_path / "patient" / "config.json").read_text())
    (tmp_path / "patient" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    return tmp_path / "patient"


def test_a_chat(person):
    """Thoughts are dim, or one line; effort, undo and retry; a name for what is no command."""
    one = person()
    one.types(f"{QUESTION}\r")
    one.sees(rf"^> {re.escape(QUESTION)}\n\n12\+30: .*\n\n{ANSWER}\n")
    assert re.search(rb"\x1b\[2m12\+30", one.raw)
    one.sees(r"nano   effort medium   context 1\d\d of 4,096   [\d.]+ tokens/s")
    one.types("/analysis hide\r/effort high\r/retry\r")
    one.sees(rf"^> /retry\n\(At temperature 0 the answer will.*\n\nthought for \d+ s, \d+ tokens\n\n{ANSWER}\n")
    one.sees("nano   effort high   context")
    one.types("/undo\r/undo\r/effort huge\r/nonsense\r/help\r")
    one.sees(r"Taken back: What is 12 \+ 30\?")
    one.sees("There is nothing to take back")
    one.sees("/effort: expected low, medium, high, found 'huge'")
    one.sees("/nonsense: no such command")
    one.sees(r"^/undo +take back the last question and its answer\n")
    one.types("/bye\r")
    one.leaves()


def test_typing_goes_on_while_the_model_writes(person, patient, tmp_path):
    """What is typed meanwhile is shown at once, and Ctrl-C keeps it. The reply goes on for ever: of a schema that asks
    for a million ones no other can be."""
    (tmp_path / "ones.json").write_text('{"type": "array", "items": {"const": 1}, "minItems": 1000000}')
    one = person("--model", str(patient), "--schema", str(tmp_path / "ones.json"))
    one.types("Hi\r")
    one.sees(r"^the reply repeats itself\n.*context \d,\d\d\d of")
    one.types("typed ahead")
    one.sees("^> typed ahead$")
    before = one.sees(r"context (\d+,\d+) of")[1]
    one.sees(rf"context (?!{before}).* of")  # it writes on
    one.types("\x03")
    one.sees(r"^\(stopped\)\n")
    one.sees("^> typed ahead$")
    one.types("\x03")  # now it empties the line
    one.types("/undo\r")
    one.sees("Taken back: Hi")
    one.types("\x04")
    one.leaves()


def test_ctrl_c_stops_the_reading_of_a_long_prompt(person, patient, tmp_path):
    (tmp_path / "long.txt").write_text("a b c d e f g " * 8000)
    one = person("--model", str(patient))
    one.types(f"/read {tmp_path}/long.txt\r{QUESTION}\r")
    one.sees(r"long.txt: 56,001 tokens, which go with the next question")
    one.sees(r"reading \d\d,\d\d\d tokens  [\u2588\u2591]{20}  \d+%, \d+ s left")
    one.types("\x03")
    one.sees(r"^\(stopped\)\n")
    one.types(f"/undo\r{QUESTION}\r")
    one.sees(ANSWER)


def test_ctrl_c_stops_a_tool(person, tmp_path):
    (tmp_path / "slow.py").write_text(CALCULATOR.format(seconds=600))
    (tmp_path / "fast.py").write_text(CALCULATOR.format(seconds=0))
    one = person("--tools", str(tmp_path / "slow.py"))
    one.types("What is 23 * 41?\r")
    one.sees(r'"expression": ?"23\*41".*calculator is running')  # (what is stopped before it runs leaves no call)
    one.types("\x03")
    one.sees(r"^\(stopped\)\n")
    one.types(f"/save {tmp_path}/talk.json\r/exit\r")
    one.leaves()
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert saved[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "The user interrupted this call."}
    two = person("--tools", str(tmp_path / "fast.py"), "--load", str(tmp_path / "talk.json"))
    two.types("/retry\r")
    two.sees(r"functions\.calculator.*23\*41.*943.*23 . 41 = 943\n")


def test_save_and_load(person, tmp_path):
    one = person("--system", "Be brief.", "--effort", "high")
    one.types(f"{QUESTION}\r/save {tmp_path}/talk.json\r/load {tmp_path}/none.json\r/exit\r")
    one.leaves()
    assert "none.json: expected a saved conversation, found no such file" in one.paper
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["reasoning_effort"] == "high"
    assert [message["role"] for message in saved["messages"]] == ["developer", "user", "assistant"]
    assert saved["messages"][2]["content"] == "12 + 30 = 42" and "12+30" in saved["messages"][2]["reasoning"]
    two = person()
    two.types(f"/load {tmp_path}/talk.json\r/system\r/undo\r")
    two.sees("talk.json: 1 question, effort high")
    two.sees("system: Be brief.")
    two.sees(r"Taken back: What is 12 \+ 30\?")


def test_several_lines(person):
    """A backslash, three quotes and a paste make one question of several lines. Tab completes."""
    one = person()
    ways = ("What is\\\r12 + 30?\r", '"""\rWhat is\r12 + 30?"""\r', "\x1b[200~What is\n12 + 30?\x1b[201~\r")
    for n, keys in enumerate(ways, 1):
        one.types(f"{keys}/reset\r")
        one.sees(rf"(^> What is\n12 \+ 30\?\n\n.*{ANSWER}\n.*The conversation is forgotten.*){{{n}}}")
    one.types("/effo\t")
    one.sees("^> /effort")
    one.types(" low\r")
    one.sees("nano   effort low   context")


def test_what_is_typed_wrong_is_said(person, tmp_path):
    """Settings out of range, a retry that cannot be asked, quotes that belong to the question."""
    one = person("--seed", "1")
    one.types("/set temperature -1\r/set top_p 5\r/set seed 1.5\r/set max_tokens\r/set nothing 1\r")
    for message in ("temperature: expected a number of at least 0, found '-1'", "top_p: expected a number from 1e-09",
                    "seed: expected an integer of at least 0, found '1.5'", "max_tokens: expected an integer of at ",
                    "/set: expected temperature, top_p, top_k, min_p, seed, max_tokens, found 'nothing'"):
        one.sees(re.escape(message))
    one.types("/set temperature 2\r/set temperature none\r")
    one.sees(r"temperature 2\.0   seed 1.*temperature 0\.0   seed 1")
    one.types(f'{QUESTION}\rSay \"\"\"a\"\"\"\r')
    one.sees(rf'{ANSWER}.*^> Say \"\"\"a\"\"\"\n\n\S.*tokens/s')
    (tmp_path / "long.txt").write_text("a b c d " * 9000)
    one.types(f"/read {tmp_path}/long.txt\r/retry\r")
    one.sees(r"fewer than 4096 tokens, the context")
    one.types("/set\r/undo\r/undo\r")  # all is as it was, but that the files are gone
    one.sees(rf"temperature 0\.0   seed 2\n.*Taken back: Say .*Taken back: {re.escape(QUESTION)}")
    one.types('/reset now\r/usr/bin is what?\r"""/reset"""\r/read nano/model.safetensors\r')
    one.sees(r"/reset: expected nothing after it, found 'now'\n")
    one.sees(r"^> /usr/bin is what\?\n\n\S.*^> /reset\n\n\S.*expected a text, found binary data\n")


def test_a_question_is_changed(person):
    """/edit gives it back to be changed; until the changed one is sent, all stays."""
    one = person()
    one.types(f"{QUESTION}\r/edit\r")
    one.edits(f"> {QUESTION}")
    one.types("\x03/undo\r")
    one.sees(rf"Taken back: {re.escape(QUESTION)}")
    one.types(f"{QUESTION}\r/edit\r")
    one.edits(f"> {QUESTION}")
    one.types("\x7f" * 3 + "1?\r")
    one.sees(r"^> What is 12 \+ 1\?\n.*12 \+ 1 = 13")
    one.types("/undo\r/undo\r")
    one.sees(r"Taken back: What is 12 \+ 1\?.*There is nothing to take back")


def test_edit_and_load_lose_nothing(person, tmp_path):
    """A question to be changed stays until the changed one can be asked, and is given up by Ctrl-C; a conversation
    that cannot be rendered is not loaded."""
    (tmp_path / "long.txt").write_text("a b c d " * 9000)
    (tmp_path / "bad.json").write_text('[{"role": "user", "content": "Q\\ud800x"}]')
    one = person()
    one.types(f"{QUESTION}\r/edit\r")
    one.edits(f"> {QUESTION}")
    one.types("\x03")
    one.edits(">")
    one.types("Hello!\r/edit\r")
    one.edits("> Hello!")
    one.types("\x15")
    one.edits(">")
    one.types(f"/read {tmp_path}/long.txt\rAgain\r/load {tmp_path}/bad.json\r/load ~nobody-here/x\r")
    one.sees(r"fewer than 4096 tokens, the context.*bad.json: .*surrogate.*~nobody-here/x: expected a saved conversat")
    one.types("/undo\r/undo\r/undo\r")
    one.sees(rf"Taken back: Hello!.*Taken back: {re.escape(QUESTION)}.*There is nothing to take back")


def test_a_line_that_was_pasted_is_shown_clean(person):
    one = person()
    one.types("\x1b[200~a\x1b]0;evil\x07\u202eb\x1b[201~\r")
    one.sees(r"^> a\]0;evilb\n")
    assert b"\x1b]0;evil" not in one.raw and "\u202e".encode() not in one.raw.split(b"> a]0;evilb")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_what_was_started_ends_with_the_chat(person, serve, script, number):
    """Also in the middle of a call. The terminal is usable again, if there was time for it."""
    call = "[channel]analysis to=python code[message]import time\nwhile True: time.sleep(0.1)[call]"
    one = person("--server", answering(serve, script, call).url, "--model", "nano", "--python", "--yes")
    one.types("Go\r")
    one.sees("python is running")
    deadline = time.monotonic() + 10
    while not (before := children(one.child.pid)) and time.monotonic() < deadline:  # it is said just before it starts
        time.sleep(0.01)
    assert before
    os.kill(one.child.pid, number)
    one.leaves(-9 if number == signal.SIGKILL else 128 + number)
    for _ in range(100):
        left = [pid for pid in before if Path(f"/proc/{pid}/stat").exists()
                and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]
        if not left:
            break
        time.sleep(0.05)
    assert not left


def children(pid):
    """The processes that this one has started, and those that they have."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return found + [pid for child in found for pid in children(child)]


def test_ctrl_c_stops_a_command(person, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    one = person()
    one.types(f"/read {tmp_path}/pipe\r")
    one.sees("^> /read .*pipe\n")
    one.types("\x03")
    one.sees(r"^\(stopped\)\n")
    one.types(f"{QUESTION}\r")
    one.sees(ANSWER)


def test_nothing_that_is_said_moves_the_cursor(person, tmp_path):
    """Neither a tool's result nor a file's name."""
    (tmp_path / "evil.py").write_text('def calculator(expression: str) -> str:\n    """Computes an expression."""\n'
                                      '    return "\\x1b]0;evil\\x07\\x1b[31mred\\x9b2J\\r943"\n')
    one = person("--tools", str(tmp_path / "evil.py"))
    one.types("What is 23 * 41?\r")
    one.sees(r"\]0;evil\[31mred2J943")
    assert b"]0;evil\x07" not in one.raw and b"\x1b[31m" not in one.raw and b"\xc2\x9b" not in one.raw


def test_the_context_fills_and_that_is_said(person, tmp_path):
    (tmp_path / "long.txt").write_text("a b c d " * 900)
    (tmp_path / "longer.txt").write_text("a b c d " * 9000)
    one = person("--max-tokens", "50")
    one.types(f"/read {tmp_path}/long.txt\r{QUESTION}\r")
    one.sees(r"the context is [89]\d% full; when it is full no more can be said: /undo takes back the last question")
    one.types(f"/read {tmp_path}/longer.txt\r{QUESTION}\r")
    one.sees(r"4096 tokens, the context, found \d+; ask something shorter, or make room with /undo or /reset")
    one.types(f"/reset\r{QUESTION}\r")
    one.sees(ANSWER)


def test_answers_in_json(person, tmp_path):
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"],
              "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    one = person("--schema", str(tmp_path / "schema.json"), "--max-tokens", "200")
    one.types(f"{QUESTION}\r")
    one.sees(r'^\{\s*"answer"\s*:\s*-?\d+\s*\}\n')


# ---- With a server that says what it is told to ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def script():
    return Scripted(tokenizers.load(ROOT / "nano"))


def answering(serve, script, *replies):
    """A server that answers each request with the next reply, a token at a time. CUT and WAIT: see servers.py."""
    replies = [list(reply) if isinstance(reply, list) else [reply] for reply in replies]

    def answer(body):
        events = []
        for part in replies.pop(0):
            events += [part] if part in (CUT, WAIT) else [vllm_event([id]) for id in script.ids(part)]
        return 200, events

    return serve(vllm(None, max_model_len=4096) | {COMPLETIONS: answer})


def test_a_turn_with_three_tools(person, serve, script, tmp_path):
    """Thinking, calling, reading results and citing; each call framed with its name. The code runs after a yes."""
    (tmp_path / "calc.py").write_text(CALCULATOR.format(seconds=0))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "tea.md").write_text("# Tea\n\nTea is a drink.\n")
    server = answering(
        serve, script,
        '[channel]analysis[message]First the sum.[end][start]assistant[channel]commentary to=functions.calculator '
        '[constrain]json[message]{"expression": "6*7"}[call]',
        "[channel]analysis to=python code[message]x = 6 * 7\nx + 1[call]",
        '[channel]analysis to=browser.open json[message]{"id": "tea.md"}[call]',
        "[channel]final[message]It is **42**, and tea is a drink\u30100\u2020L5\u3011.[return]")
    one = person("--server", server.url, "--model", "nano", "--tools", str(tmp_path / "calc.py"), "--python",
                 "--browser", str(tmp_path / "texts"))
    one.types("/tools\r")
    one.sees(r"functions\.calculator +Computes an expression\.\npython .*\nbrowser\.search +Searches for")
    one.types("What is it?\r")
    one.sees(r"First the sum\..*functions\.calculator.*\"6\*7\".*\n.*42")
    one.sees(r"x = 6 \* 7.*x \+ 1.*\n.*\n.*Run this Python code \(lines: 2\)\? \(y/N\)$")
    one.types("y\r")
    one.sees(r" python .*x \+ 1.*43.* browser\.open .*tea\.md.*Tea is a drink.*It is 42, and tea is a drink")
    one.sees(r"It is 42, and tea is a drink \(.*tea\.md.*\)")
    assert re.search(rb"\x1b\[1m42", one.raw)  # Markdown
    one.types(f"/save {tmp_path}/talk.json\r/exit\r")
    one.leaves()
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [call["function"]["name"] for message in saved for call in message.get("tool_calls", ())] == [
        "calculator", "python", "browser.open"]
    prompts = [body["prompt"] for path, _, body in server.asked if path == COMPLETIONS]
    assert all(later[: len(earlier)] == earlier for earlier, later in zip(prompts, prompts[1:], strict=False))


def test_an_answer_that_was_typed_before_the_question_is_none(person, serve, script):
    """Nobody approves code that nobody has seen. What was being typed comes back after the answer."""
    wait = "[channel]analysis[message]Hm.[end][start]assistant to=python[channel]analysis code[message]1 + 1[call]"
    server = answering(serve, script, wait, "[channel]final[message]Well then.[return]",
                       "[channel]final[message]You said y.[return]")
    one = person("--server", server.url, "--model", "nano", "--python")
    one.types("What is it?\ry\rhalf a ques")
    one.sees(r"1 \+ 1.*\n.*Run this Python code \(lines: 1\)\? \(y/N\)$")
    one.types("n\r")
    one.sees("The user did not allow this code to run.*Well then.*^> y\n.*You said y.*^> half a ques$")


def test_an_early_answer_is_none_without_a_line_to_type_on_either(serve, script):
    call = "[channel]analysis[message]Hm.[end][start]assistant to=python[channel]analysis code[message]1 + 1[call]"
    server = answering(serve, script, call, "[channel]final[message]Well then.[return]")
    with Person("chat.py", "--server", server.url, "--model", "nano", "--python", "--prompt", "What is it?") as one:
        one.types("y\r")
        one.sees(r"Run this Python code \(lines: 1\)\? \(y/N\)$")
        one.types("n\r")
        one.sees("The user did not allow this code to run.*Well then")
        one.leaves()


def test_no_is_told_to_the_model(person, serve, script):
    server = answering(serve, script, "[channel]analysis to=python code[message]1 + 1[call]",
                       "[channel]final[message]Well then.[return]")
    one = person("--server", server.url, "--model", "nano", "--python")
    one.types("What is it?\r")
    one.sees(r"\(y/N\)$")
    one.types("\r")
    one.sees("The user did not allow this code to run.*Well then")


def test_a_reply_is_shown_as_it_comes_and_stopped_at_the_server(person, serve, script):
    begun = "[channel]analysis[message]A thought.[end][start]assistant[channel]final[message]It begins"
    server = answering(serve, script, [begun, WAIT], "[channel]final[message]Again.[return]")
    one = person("--server", server.url, "--model", "nano")
    one.types("What is it?\r")
    one.sees(r"^A thought\.\n.*^It begins\n>$")
    one.types("\x03")
    one.sees(r"^It begins\n.*^\(stopped\)\n")
    assert server.gone.wait(10)
    one.types("/retry\r")
    one.sees(r"^Again\.\n")


def test_a_server_that_breaks_off(person, serve, script):
    """One sentence, the conversation kept, and /retry asks again."""
    server = answering(serve, script, "[channel]final[message]One.[return]", ["[channel]final[message]Tw", CUT],
                       [CUT], "[channel]final[message]Two, whole.[return]")
    one = person("--server", server.url, "--model", "nano")
    one.types("Say one\rSay two\r")
    one.sees(r"^One\.\n.*^Tw\n.*http://127.0.0.1:\d+: expected .*; /retry asks again")
    one.types("/retry\r/retry\r")
    one.sees(r"^Two, whole\.\n")
    prompt = script.tokenizer.decode(server.body()["prompt"])
    assert prompt.count("Say one") == 1 and prompt.count("Say two") == 1 and "One.<|end|>" in prompt
    server.shutdown()
    server.server_close()
    one.types("Say three\r")
    one.sees(r"expected an answer, found Connection refused; /retry asks again")
    one.types("/exit\r")
    one.leaves()


@pytest.mark.parametrize(("key", "options", "message"), [
    ("", [], "expected an API key that it accepts, found none"),
    ("another", [], "expected an API key that it accepts, found another"),
    ("secret\n", ["--server-model", "x"], "model: expected one of m, found 'x'"),
    ("secret", ["--schema", "nano/config.json"], "schema: expected an engine of this machine, found a server"),
])
def test_a_server_that_refuses(serve, key, options, message):
    server = serve(vllm([]), key="secret")
    done = subprocess.run([sys.executable, "chat.py", "--server", server.url, "--model", "nano", *options], cwd=ROOT,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          env=os.environ | {"GPTOSS_API_KEY": key})
    assert done.returncode == 2 and done.stderr.startswith("chat.py: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and "secret" not in done.stderr

"""How programs begin and end: with what is closed, full or missing around them, and with a signal at any moment."""

import json
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from person import Person

import program

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
QUESTION, ANSWER = "What is 12 + 30?", "12 + 30 = 42\n"
CHAT = ("chat.py", "--temperature", "0", "--prompt", QUESTION)
SMALL = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
# Of each program a command that ends soon.
PROGRAMS = [("chat.py", "--help"), ("xray.py", "--help"), ("serve.py", "--help"), ("-m", "evals", "--help"),
            ("-m", "bench", "--help"), ("-m", "bench.ladder", "--help"), ("-m", "bench.random_checkpoint", "--help"),
            ("-m", "train.pack", "--help"), ("-m", "train.examples", "--help"), ("-m", "train.tasks"),
            ("-m", "train.vocabulary", "--help"), ("-m", "train.pretrain", "--help"),
            ("-m", "train.finetune", "--help"), ("docs/build.py", "--help"), ("docs/pictures", "--help"),
            ("docs/site/look.py", "--help"), ("exercises/check.py", "--help"), ("exercises/break_it.py", "--list"),
            ("tests/compare.py", "--help"), ("tests/official.py", "--help")]


def run(*command, shell="", prepare=None, cwd=ROOT, **environment):
    """(exit status, standard output, standard error) of a program that a shell starts. `shell`: what follows it."""
    words = shlex.join([sys.executable, *command])
    done = subprocess.run(["bash", "-c", f"{words} {shell}; exit ${{PIPESTATUS[0]}}"], cwd=cwd, timeout=300,
                          capture_output=True, text=True, preexec_fn=prepare, stdin=subprocess.DEVNULL,
                          env=os.environ | SMALL | environment)
    return done.returncode, done.stdout, done.stderr


# ---- Standard input, output and error -------------------------------------------------------------------------------

@pytest.mark.parametrize(("shell", "expected"), [
    ("<&-", (0, ANSWER, "")), ("2>&-", (0, ANSWER, "")), ("2>/dev/full", (0, ANSWER, "")),
    (">&-", (2, "", "chat.py: standard output: Bad file descriptor\n")), ("<&- >&- 2>&-", (2, "", "")),
    (">/dev/full", (2, "", "chat.py: standard output: No space left on device\n")),
    ("| head -c 1", (0, "1", "")), ("| true", (0, "", ""))])
def test_what_is_closed_or_full(shell, expected):
    assert run(*CHAT, shell=shell) == expected


@pytest.mark.parametrize("command", PROGRAMS if LONG else random.Random(1).sample(PROGRAMS, 4), ids=" ".join)
def test_every_program_ends_in_order(command):
    for shell, statuses, lines in (">&-", {2}, 1), (">/dev/full", {2}, 1), ("<&- >&- 2>&-", {2}, 0), \
            ("| true", {0, 1, 2}, 0):  # whose status is a verdict has none to give where nobody reads it
        status, out, said = run(*command, shell=shell)
        assert status in statuses and out == "" and said.count("\n") == lines, (shell, status, said)


def test_a_file_that_is_opened_does_not_take_the_place_of_what_is_closed():
    """Else what a library writes to descriptor 2 would go into that file."""
    code = "import program; program.begin(); print(open('/dev/null').fileno() > 2)"
    assert run("-c", code, shell="<&- 2>&-") == (0, "True\n", "")


def test_output_that_cannot_be_written_is_met_once(tmp_path):
    """What catches all errors of files goes on without it; the program says it at the end all the same."""
    code = ("import sys, program\nprogram.begin()\n@program.ends('x')\ndef main():\n  for _ in range(3):\n    try: "
            "print('a', flush=True)\n    except OSError: pass\n    sys.stderr.write('b')\nmain()")
    assert run("-c", code, shell=">/dev/full") == (2, "", "x: standard output: No space left on device\n")


def test_text_that_the_terminal_cannot_show():
    status, out, said = run(*CHAT[:-1], "What is 23 * 41?", PYTHONIOENCODING="ascii")
    assert (status, said) == (0, "") and re.fullmatch(r"23 \? 41 = \d+\n", out)


@pytest.mark.parametrize("columns", ["0", "1", "x", "-5", "1000000000", "9" * 5000])
def test_a_width_that_nothing_fits_in_is_not_believed(columns):
    code = "import os, program; program.begin(); print('COLUMNS' in os.environ, os.environ['LINES'])"
    assert run("-c", code, COLUMNS=columns, LINES="24") == (0, "False 24\n", "")


@pytest.mark.parametrize("term", ["dumb", "unknown", "nonsense", ""])
def test_any_terminal_shows_the_answer(term, tmp_path):
    with Person("chat.py", "--temperature", "0", XDG_STATE_HOME=str(tmp_path), TERM=term) as one:
        one.sees("^>")
        one.types(f"{QUESTION}\r")
        one.sees(r"12 \+ 30 = 42")
        one.types("\x04")
        one.leaves()


def test_a_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    gone = ("import os, sys, runpy; os.rmdir(os.getcwd()); sys.argv[:1] = []; "
            "sys.path[0] = os.path.dirname(sys.argv[0]); runpy.run_path(sys.argv[0], run_name='__main__')")
    assert run("-c", gone, str(ROOT / "chat.py"), *CHAT[1:], cwd=tmp_path / "gone") == (0, ANSWER, "")


# ---- Memory, and what is not installed ------------------------------------------------------------------------------

@pytest.mark.parametrize("megabytes", [100, 320, 500])
def test_too_little_memory_is_one_sentence(megabytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    said = f"chat.py: expected at least 512 MB of memory (ulimit -v), found {megabytes}\n"
    assert run(*CHAT, prepare=limit) == (2, "", said)


def test_memory_that_ends_later_is_one_sentence_and_ends_no_conversation(capsys):
    @program.ends("x")
    def main():
        raise MemoryError("Unable to allocate 3 GiB")

    with pytest.raises(SystemExit, match="^2$"):
        main()
    assert capsys.readouterr().err == "x: expected more memory, found no more of it (Unable to allocate 3 GiB)\n"


def test_a_package_that_is_missing_or_cannot_be_loaded(tmp_path):
    for text, said in (("raise ModuleNotFoundError('no', name='numpy')", "found no numpy"),
                       ("raise ImportError('Much advice\\n\\n' * 9) from OSError('no room')", "chat.py: no room")):
        (tmp_path / "numpy.py").write_text(text)
        status, out, error = run(*CHAT, PYTHONPATH=str(tmp_path))
        assert (status, out) == (2, "") and said in error and error.count("\n") == 1, error


def test_a_complaint_is_one_line_and_not_long():
    assert program.one_line("a\nb\x1b[2Jc\ud800") == "a b\\x1b[2Jc\\ud800"
    assert len(program.one_line("x" * 10_000)) < 1010


# ---- Signals --------------------------------------------------------------------------------------------------------

COMPILE = ("import program; program.begin()\nimport models, sys\n@program.ends('x')\ndef main(): "
           "models.compile_kernels(lambda said: None, *models.compiled.PUBLISHED)\nmain()")
CALCULATOR = ('def calculator(expression: str) -> str:\n    """Computes an expression."""\n'
              '    return str(eval(expression))\n')


def start(*command, **environment):
    """A program that `program.begin` has prepared: a signal is caught."""
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT, text=True, env=os.environ | SMALL | environment,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wanted = sum(1 << number - 1 for number in (signal.SIGTERM, signal.SIGHUP))
    while child.poll() is None:
        with open(f"/proc/{child.pid}/status") as status:
            if int(re.search(r"SigCgt:\s*(\w+)", status.read())[1], 16) & wanted == wanted:
                return child
    raise AssertionError(child.communicate())


def moments(times, seed, longest):
    return [random.Random(f"{seed} {n}").random() * longest for n in range(times)]


@pytest.mark.parametrize(("command", "times", "seconds"), [
    (CHAT, 100 if LONG else 3, 1.5), (("xray.py", QUESTION), 20 if LONG else 2, 1.5),
    (("serve.py", "--port", "0"), 20 if LONG else 2, 2), (("-c", COMPILE), 20 if LONG else 1, 20 if LONG else 5)],
    ids=["chat", "xray", "serve", "compile"])
def test_ctrl_c_at_any_moment(command, times, seconds, tmp_path):
    """Exit status 130 and no traceback; 0 if all was done before. When Python ends, it gives signals back to the system
    (-2), which a shell calls 130 too."""
    cold = {"NUMBA_CACHE_DIR": str(tmp_path)} if "-c" in command else {}
    for moment in moments(times, command, seconds):
        child = start(*command, **cold)
        time.sleep(moment)
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=60)
        assert child.returncode in (130, 0, -2) and "Traceback" not in said and said.count("\n") <= 1, (moment, said)
        assert child.returncode == 130 or "serve.py" not in command


@pytest.mark.parametrize(("end", "status", "said"), [
    ("raise ValueError('bad input')", 2, "x: bad input\n"), ("sys.exit(143)", 143, ""), ("return", 0, "")])
def test_a_reader_that_has_left_hides_no_failure(end, status, said):
    """Text still waits to be written when the program ends."""
    code = ("import program, sys, time; program.begin()\n@program.ends('x')\ndef main():\n"
            f"  time.sleep(0.5)\n  print('on')\n  {end}\nsys.exit(main())")
    assert run("-c", code, shell="| true", PYTHONUNBUFFERED="") == (status, "", said)


def test_ctrl_c_is_not_lost_where_llvm_calls_python():
    """An exception in a callback of ctypes is printed, and forgotten."""
    code = ("import program, ctypes, signal, time; program.begin()\n@program.ends('x')\ndef main():\n"
            "  back = ctypes.CFUNCTYPE(None)(eval('lambda: signal.raise_signal(signal.SIGINT)', globals() | "
            "{'__name__': 'llvmlite.x'}))\n  back()\n  print('on', flush=True)\n  time.sleep(60)\nmain()")
    assert run("-c", code) == (130, "on\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_a_program_in_order(number):
    """While it imports, and later. What `nohup` has made ignored stays so."""
    for moment in (0, 1):
        child = start("serve.py", "--port", "0")
        if moment:
            next(line for line in child.stderr if line.startswith("http://"))
        child.send_signal(number)
        assert child.communicate(timeout=60)[1] == "" and child.returncode == 128 + number
    code = "import program, os, signal; program.begin(); os.kill(os.getpid(), signal.SIGHUP); print('on')"
    assert run("-c", code, prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) == (0, "on\n", "")


def test_ctrl_c_loses_nothing_of_a_conversation(tmp_path):
    """Whatever is interrupted, reading, thinking, a tool or the saving: the file is whole, and the chat goes on."""
    tool, file, rng = tmp_path / "tool.py", tmp_path / "talk.json", random.Random(0)
    tool.write_text(CALCULATOR)
    child = start(*CHAT[:-2], "--tools", str(tool))
    for moment in moments(100 if LONG else 20, "talk", 0.15):
        question = rng.choice([QUESTION, "What is 23 * 41?", "Hello!"])
        child.stdin.write(f"/reset\n{question}\n/save {file}\n")
        child.stdin.flush()
        if not file.exists():  # once undisturbed
            while not file.exists():
                time.sleep(0.01)
        time.sleep(moment)
        child.send_signal(signal.SIGINT)
        json.loads(file.read_text())
    time.sleep(1)
    out, said = child.communicate(f"/reset\n{QUESTION}\n/save {file}\n", timeout=600)
    assert child.returncode == 0 and "Traceback" not in said
    assert json.loads(file.read_text())["messages"][-1]["content"] == ANSWER.strip()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

"""The tools that run here: python, a user's functions, and apply_patch. What they are given is meant badly."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from contextlib import contextmanager
from difflib import unified_diff
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import harmony
from schema import typescript
from tools import functions, process, python
from tools.apply_patch import ApplyPatch, updated

GONE = "the session was restarted: its variables are gone"


def processes(mark):
    """How many processes have `mark` in their environment, which all inherit."""
    count = 0
    for entry in Path("/proc").iterdir():
        try:
            count += entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            pass
    return count


def none_left(mark):
    """Whether there are none, after a moment in which the system buries them: three times, as new ones could come."""
    end, none = time.monotonic() + 5, 0
    while none < 3 and time.monotonic() < end:
        none = 0 if processes(mark) else none + 1
        time.sleep(0.01)
    return none == 3


@contextmanager
def interrupted(seconds):
    """Ctrl-C after some seconds, which has to end what is done here at once."""
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    begun = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - begun < seconds + 1


# ---- python ---------------------------------------------------------------------------------------------------------


BOTH_WAYS = pytest.mark.parametrize("tool", ["as the system allows", "without unshare"], indirect=True)


@pytest.fixture
def tool(request, monkeypatch):
    if getattr(request, "param", "") == "without unshare":
        monkeypatch.setattr(process.shutil, "which", lambda name: None)
    process.without_network.cache_clear()
    tool = python.Python()
    yield tool
    tool.close()
    process.without_network.cache_clear()
    assert none_left(tool.folder.name) and not Path(tool.folder.name).exists()


def test_python_is_shown_as_the_model_knows_it(tool):
    assert tool.namespace is harmony.PYTHON


@pytest.mark.parametrize(("content", "shown"), [
    ("x = 3\nx + 1", "4\n"),
    ("x", "3\n"),  # what was defined before is there
    ("_ * 2", "6\n"),
    ("x = 4;", python.NOTHING),
    ("None", python.NOTHING),
    ("", python.NOTHING),
    ("# a remark", python.NOTHING),
    ("for i in range(2): i", python.NOTHING),  # only the last expression is shown
    ("print('a')\n'b'", "a\n'b'\n"),
    ('{"code": "x + 1"}', "5\n"),
    ('{"code": "1", "x": 2}', "{'code': '1', 'x': 2}\n"),
    ("```python\nx\n```", "4\n"),
    ("```\nx\n```\n", "4\n"),
    ("import sys\nprint(1); print(2, file=sys.stderr); print(3)", "1\n2\n3\n"),
    ("import os\nprint('a', flush=True); os.system('echo b; echo c >&2'); print('d')", "a\nb\nc\nd\n"),
    ("print('é', '\\ud800')", "é \\ud800\n"),
    ("sys.stdout.buffer.write(b'\\xff\\n') and None", "\ufffd\n"),
    ("def f():\n    return g()\ndef g():\n    1 / 0\n", python.NOTHING),
    ("__name__", "'__main__'\n"),
])
def test_python_is_a_notebook(content, shown, shared):
    assert shared.call("python", content) == shown


@pytest.fixture(scope="module")
def shared():
    tool = python.Python()
    yield tool
    tool.close()


def test_a_traceback_shows_the_code_of_the_model_alone(shared):
    shared.call("python", "def f():\n    return 1 / 0")
    shown = shared.call("python", "f()")
    assert re.findall(r'File "(.*)", line (\d+), in (.*)\n    (.*)', shown)[0][1:] == ("1", "<module>", "f()")
    assert "return 1 / 0" in shown and shown.endswith("ZeroDivisionError: division by zero\n")
    assert "child.py" not in shown
    shown = shared.call("python", "x = = 1")
    assert shown.endswith("SyntaxError: invalid syntax\n") and "child.py" not in shown and "ast.py" not in shown


EACH_FD = "import os\nfor fd in range(3, 9):\n    try: {}\n    except OSError: pass"


@pytest.mark.parametrize(("code", "shown"), [
    ("import sys; sys.exit(3)", "SystemExit: 3\n$"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt\n$"),
    ("import os; os._exit(3)", rf"^\[ERROR\] the process ended with exit code 3; {GONE}$"),
    ("print('last', end='', flush=True)\nimport os; os._exit(0)", rf"^last\n\[ERROR\] the process ended .* 0; {GONE}$"),
    ("import ctypes; ctypes.string_at(0)", rf"^\[ERROR\] the process was ended by signal 11; {GONE}$"),
    ("import os; os.abort()", rf"\[ERROR\] the process was ended by signal \d+; {GONE}$"),
    ("input()", "EOFError: EOF when reading a line\n$"),
    ("import sys; sys.stdin.close(); input()", "ValueError: I/O operation on closed file"),
    ("import sys; sys.stdout.close(); 5", "ValueError: I/O operation on closed file"),
    ("import os; os.close(0); os.close(1); os.close(2)", "^"),
    ("import os; os.closerange(0, 100)", rf"\[ERROR\] the process ended with exit code \d+; {GONE}$"),
    ("import os, shutil; shutil.rmtree(os.getcwd()); os._exit(0)", GONE),
    ("import os, shutil; here = os.getcwd(); shutil.rmtree(here); os.symlink('/', here); os._exit(0)", GONE),
    ("import os, shutil; here = os.getcwd(); shutil.rmtree(here); os.mkfifo(here); os._exit(0)", GONE),
    ("import os; os.chmod(os.getcwd(), 0); os._exit(0)", GONE),
    ("import sys; sys.stdout = sys.stderr = None; 1/0", "ZeroDivisionError"),
    ("def f(): f()\nf()", "RecursionError"),
    ("import sys; sys.setrecursionlimit(10**9)\nf = lambda _: max([1], key=f)\nf(1)", f"Error|signal 11; {GONE}"),
    ("x = 'x' * (3 << 30)", "MemoryError\n$"),
    ("x = []\nwhile True: x.append(bytes(10**8))", "MemoryError\n$"),
    ("[0] * 10**7", "^.0, 0, 0.*\n.[0-9]+ characters left out.\n.*0, 0.\n$"),
    ("print = 5; import builtins; builtins.compile = builtins.len = builtins.open = None; 3", "^3\n$"),
    ("import builtins; vars(builtins).clear()", "^"),
    ("import sys; sys.modules.clear()", "^"),
    ("import json, os, traceback; json.dumps = json.loads = os.getpid = os.dup2 = traceback.print_exc = None", "^"),
    ("import os\nif os.fork() == 0: print('child')\n", "^"),
    ("import os\nfor _ in range(20):\n    if os.fork(): break\n    os.setsid()", "^"),
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()", re.escape(python.NOTHING)),
    ("import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])", "^"),
    (EACH_FD.format("os.write(fd, b'[' * 9 + b'\\n')"), f"the process replied out of turn; {GONE}"),
    (EACH_FD.format("os.write(fd, b'[]\\n')"), f"the process replied out of turn; {GONE}"),
    (EACH_FD.format("os.write(fd, b'{\"id\": 9}\\n')"), f"the process replied out of turn; {GONE}"),
    (EACH_FD.format("os.write(fd, b'x' * (1 << 21))"), f"the process replied out of turn; {GONE}"),
    (EACH_FD.format("os.write(fd, b'{\"id\": 1}\\n')"), "^"),  # as if it had come to its end
    (EACH_FD.format("os.close(fd)"), GONE),
    ("class A:\n    def __repr__(self): raise SystemExit\nA()", "SystemExit"),
    ("class A(Exception):\n    def __str__(self): 1/0\nraise A", "exception str|unprintable"),
    ("open('file', 'wb').truncate(1 << 40)", "OSError: .* too large"),
    ("x = [open('/dev/null') for _ in range(999)]", "OSError: .*Too many open files"),
])
@BOTH_WAYS
def test_whatever_the_code_does_the_model_is_told_and_the_next_call_works(code, shown, tool, monkeypatch):
    monkeypatch.setattr(python, "SECONDS", 10)
    assert re.search(shown, tool.call("python", code))
    again = tool.call("python", "6 * 7")  # what the code has left behind may be noticed by this call only
    assert again.endswith("42\n") or GONE in again and tool.call("python", "6 * 7") == "42\n"


@pytest.mark.parametrize("code", [
    "while True: pass",
    "import time; time.sleep(99)",
    "import os\nwhile True: os.fork()",
    "while True: print('x' * 1000)",
    "import re; re.match('(a*)*b', 'a' * 40)",
    "import subprocess; subprocess.run(['/bin/sleep', '99'])",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    EACH_FD.format("os.read(fd, 1)"),
])
@BOTH_WAYS
def test_time_is_limited(code, tool, monkeypatch):
    tool.call("python", "x = 3")
    monkeypatch.setattr(python, "SECONDS", 0.3)
    begun = time.monotonic()
    shown = tool.call("python", code)
    assert shown.endswith(f"[ERROR] timed out after 0.3 s; {GONE}") and time.monotonic() - begun < 5
    assert len(shown) <= 16_000 and none_left(tool.folder.name)
    monkeypatch.setattr(python, "SECONDS", 20)
    assert tool.call("python", "x").endswith("NameError: name 'x' is not defined\n")


def test_a_flood_takes_little_memory_and_the_middle_is_left_out(shared, monkeypatch):
    tracemalloc.start()
    shown = shared.call("python", "print('a' * 10**5 + 'é' * 10**7 + 'z' * 10**5)")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert re.fullmatch(r"a{11850}\n\[10184201 characters left out\]\nz{3949}\n", shown) and peak < 5e6
    assert len(shared.call("python", "'x' * 10**8")) <= 16_000


def test_what_is_not_too_long_comes_whole(shared):
    assert shared.call("python", "print('x' * 15_000)") == "x" * 15_000 + "\n"
    assert "left out" not in shared.call("python", "print('x' * 15_799)")


@BOTH_WAYS
def test_the_code_gets_no_environment_but_a_folder_of_its_own(tool, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    tool.call("python", "import os, tempfile")
    shown = tool.call("python", "sorted(os.environ), os.getcwd(), os.listdir(), tempfile.gettempdir()")
    folder = tool.folder.name
    assert shown == f"{(['HOME', 'LANG', 'TMPDIR'], folder, [], folder)}\n"
    tool.call("python", "open('note', 'w').write('kept')\nos._exit(1)")
    assert tool.call("python", "open('note').read()") == "'kept'\n"  # files stay when variables go
    assert Path(folder).resolve() != ROOT


def test_the_code_does_not_find_this_project(shared):
    for module in ("harmony", "tools", "child", "process"):
        assert "ModuleNotFoundError" in shared.call("python", f"import {module}")


UNMOUNT = """\
import ctypes, os
if os.getpid() == 1:  # it has a /proc of its own, and is to find no other below; elsewhere it would be the machine's
    libc = ctypes.CDLL(None)
    libc.umount2(b"/proc", 2)
    libc.unshare(0x10020000)  # root of other namespaces
    libc.umount2(b"/proc", 2)
b"pytest" in open("/proc/PID/cmdline", "rb").read()"""


@BOTH_WAYS
def test_the_code_sees_this_program_only_where_it_has_no_proc_of_its_own(tool):
    shown = tool.call("python", UNMOUNT.replace("PID", str(os.getpid())))
    alone = "--pid" in tool.process.command
    assert "FileNotFoundError" in shown if alone else shown == "True\n"


@BOTH_WAYS
def test_the_network_is_off_where_the_system_allows_it(tool):
    with socket.create_server(("127.0.0.1", 0)) as server:
        shown = tool.call("python", f"import socket\nsocket.create_connection({server.getsockname()}, 5).close()")
    assert tool.offline == ("Network is unreachable" in shown) and tool.offline == (shown != python.NOTHING)
    if process.shutil.which("unshare"):
        assert tool.offline == (subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0)
    else:
        assert not tool.offline


@BOTH_WAYS
def test_an_interrupt_ends_the_call_and_the_next_one_says_so(tool):
    tool.call("python", "x = 3")
    with interrupted(0.5):
        tool.call("python", "import subprocess, time\nsubprocess.run(['/bin/sleep', '99'])")
    assert none_left(tool.folder.name)
    assert tool.call("python", "6 * 7") == f"[WARN] {GONE}\n42\n"
    assert tool.call("python", "6 * 7") == "42\n"


def test_the_user_is_asked_before_each_run():
    asked = []
    tool = python.Python(confirm=lambda code: asked.append(code) or "2" not in code)
    assert tool.call("python", "1") == "1\n"
    assert tool.call("python", '{"code": "print(2)"}') == "The user did not allow this code to run."
    assert asked == ["1", "print(2)"]
    tool.close()


@BOTH_WAYS
def test_background_processes_end_with_the_tool(tool):
    """Even those that detach themselves, where the tool has process ids of its own."""
    detach = "os.setsid()" if "--pid" in tool.process.command else "pass"
    tool.call("python", f"import os, time\nif os.fork() == 0:\n    {detach}\n    if os.fork() == 0: time.sleep(99)\n"
                        f"    time.sleep(99)")
    assert processes(tool.folder.name) >= 2
    tool.close()
    assert none_left(tool.folder.name)


def test_nothing_is_sent_before_the_process_has_started():
    """Killed while it starts, this program leaves a process that has nothing to run."""
    other = process.Process()
    other.command = [sys.executable, "-uc", "from select import select\nearly = select([0], [], [], 0.5)[0]\n"
                     "print(); input(); print('{\"id\": 1, \"early\": %d}' % len(early)); input()"]
    assert other.ask({}, 20)[0] == {"early": 0}
    other.close()


@pytest.mark.parametrize("way", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_is_left_when_the_program_ends(way):
    program = f"""
        import os, signal
        from tools.python import Python
        tool = Python()
        tool.call("python", "import os; os.fork()")
        print(tool.folder.name, flush=True)
        {way}"""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    folder = Path(done.stdout.strip())
    assert none_left(str(folder)) and folder.exists() == bool(way)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_system_on_which_nothing_can_run_is_named(shared, monkeypatch):
    monkeypatch.setattr(process, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr(shared.process, "running", None)
    with pytest.raises(ValueError, match="^tools that run code: expected Linux or macOS, found "):
        shared.call("python", "1")


@pytest.mark.parametrize("missing", [("resource",), ("resource", "fcntl", "pwd")])
def test_importing_needs_only_what_every_system_has(missing):
    program = f"import sys; sys.modules |= dict.fromkeys({missing})\nfrom tools import python, functions, apply_patch"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


# ---- functions ------------------------------------------------------------------------------------------------------

GOOD = '''
from __future__ import annotations
import os, sys, time
from enum import Enum
from os.path import join  # imported, and therefore not offered
from typing import Annotated, Literal, Optional
from pydantic import BaseModel, Field
from neighbour import NAME

class Unit(Enum):
    M = "metre"

class Point(BaseModel):
    x: int
    title: str = ""

def weather(city: str, unit: Literal["celsius", "kelvin"] = "celsius", days: Optional[int] = None) -> str:
    """Tells the weather.

    In a city.

    Args:
        city: Name and country,
            in English.
        days: How many.

    Returns:
        A sentence.
    """
    return f"{city} {unit} {days!r} {NAME}"

def types(a: int | str, b: Point, c: Annotated[float, Field(ge=0, description="said here")], *, d: list[int] = [1],
          e: Optional[list[str]] = None, f: Optional[Literal["x"]] = None, g: Unit = Unit.M, h: Point | None = None,
          title: str = "t", i: dict[str, int] = {}, j: bool | None) -> dict:
    """All kinds.

    :param a: either
    """
    return {"a": a, "b": b, "c": c, "d": d, "g": g, "set": {1}, "ö": join}

def nothing():
    """Takes nothing."""

def do(kind: str):
    "Does what is said."
    if kind == "crash":
        os._exit(3)
    exec(kind, globals(), space := {})
    return space.get("r")

def _private(x): ...
'''
LINE = GOOD.split("\n").index("    exec(kind, globals(), space := {})") + 1


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "neighbour.py").write_text("NAME = 'Nora'\n")
    (folder / "good.py").write_text(GOOD)
    tool = functions.load(folder / "good.py")
    yield tool
    tool.close()


def test_functions_are_shown_with_types_and_descriptions(offered):
    names = [function.name for function in offered.namespace.functions]
    assert (offered.namespace.name, names) == ("functions", ["weather", "types", "nothing", "do"])
    weather, types, nothing, _ = offered.namespace.functions
    assert weather.description == "Tells the weather.\n\nIn a city.\nReturns: A sentence."
    assert typescript(weather.parameters) == """{
// Name and country, in English.
city: string,
unit?: "celsius" | "kelvin", // default: celsius
// How many.
days?: number | null, // default: null
}"""
    assert typescript(types.parameters) == """{
// either
a: number | string,
b: any,
// said here
c: number,
d?: number[], // default: [1]
e?: string[] | null, // default: null
f?: string | null, // default: null
g?: any, // default: "metre"
h?: any, // default: null
title?: string, // default: "t"
i?: {
    }, // default: {}
j: boolean | null,
}"""
    assert types.parameters["required"] == ["a", "b", "c", "j"]
    assert types.parameters["$defs"]["Point"] == {
        "type": "object", "properties": {"x": {"type": "integer"}, "title": {"type": "string", "default": ""}},
        "required": ["x"]}
    assert nothing.parameters == {"type": "object", "properties": {}, "additionalProperties": False}




@pytest.mark.parametrize(("name", "content", "told"), [
    ("weather", '{"city": "Oslo"}', "Oslo celsius None Nora"),
    ("weather", '[{"city": "Oslo", "days": "3"}]', "Oslo celsius 3 Nora"),  # in a list; text for a number
    ("weather", '{"city": "Oslo", "days": null}', "Oslo celsius None Nora"),
    ("types", '{"a": 1, "b": {"x": 2}, "c": 3, "j": null}',
     '{"a":1,"b":{"x":2,"title":""},"c":3.0,"d":[1],"g":"metre","set":[1],"ö":"<function join at '),
    ("nothing", "", "null"),
    ("nothing", " {} ", "null"),
    ("do", '{"kind": "r = [1.5, None, \'ü\']"}', '[1.5,null,"ü"]'),
    ("do", '{"kind": "r = object()"}', '"<object object at '),
    ("do", '{"kind": "r = []; r.append(r)"}', "[[...]]"),
    ("do", '{"kind": "r = bytes([255])"}', "b'\\xff'"),
    ("do", '{"kind": "r = float(\'nan\')"}', "NaN"),
    ("do", '{"kind": "r = chr(0xd800)"}', "\\ud800"),
    ("do", '{"kind": "print(1); r = 2"}', "1\n2"),  # what is printed comes first
    ("do", '{"kind": "os.write(1, bytes([98, 10])); os.write(2, bytes([99, 10])); r = 2"}', "b\nc\n2"),
    ("do", '{"kind": "os.system(\'echo d\'); r = 2"}', "d\n2"),
    ("do", '{"kind": "os.close(0); sys.stdin.close(); sys.stdout.close(); os.close(1); r = 2"}', "2"),
    ("do", '{"kind": "r = \'x\' * 10**8"}', "xxx"),
    ("do", '{"kind": "os.fork(); r = 2"}', "2"),
    ("do", '{"kind": "r = os.environ.get(\'HOME\', 0) == os.path.expanduser(\'~\') or 1"}', "true"),
])
def test_a_function_is_called(name, content, told, offered):
    result = offered.call(f"functions.{name}", content)
    assert result.startswith(told) and len(result) <= 16_000
    assert offered.call("functions.nothing", "").endswith("null")


@pytest.mark.parametrize(("name", "content", "told"), [
    ("weather", "", "city: Missing required argument"),
    ("weather", '{"city": 3, "unit": "x", "more": 1}', "city: Input should be a valid string\n"
     "unit: Input should be 'celsius' or 'kelvin'\nmore: Unexpected keyword argument"),
    ("types", '{"a": 1, "b": {"x": "no"}, "c": -1, "j": true}', "b.x: Input should be a valid integer, unable to parse "
     "string as an integer\nc: Input should be greater than or equal to 0"),
    ("weather", '{"city"', "expected the arguments as a JSON object, found text that is no JSON: Expecting ':' .*"),
    ("weather", "[" * 100_000, "expected the arguments as a JSON object, found .*recursion.*"),
    ("weather", "9" * 5000, "expected the arguments as a JSON object, found .*"),
    ("weather", "[]", r"expected the arguments as a JSON object, found \[\]"),
    ("weather", "Oslo", "expected the arguments as a JSON object, found text that is no JSON: .*"),
    ("do", '{"kind": "raise KeyError(1)"}', r"KeyError: 1 \(good.py, line LINE\)"),
    ("do", '{"kind": "raise ValueError(\'two\\\\nlines\')"}', r"ValueError: two lines \(good.py, line LINE\)"),
    ("do", '{"kind": "1/"}', r"SyntaxError: invalid syntax \(<string>, line 1\) \(good.py, line LINE\)"),
    ("do", '{"kind": "sys.exit(4)"}', r"SystemExit: 4 \(good.py, line LINE\)"),
    ("do", '{"kind": "input()"}', r"EOFError: .* \(good.py, line LINE\)"),
    ("do", '{"kind": "Point(x=\'no\')"}', r"ValidationError: 1 validation error for Point .* \(good.py, line LINE\)"),
    ("do", '{"kind": "f = lambda: g()\\nglobals().update(f=f, g=lambda: f())\\nf()"}',
     r"RecursionError: .* \(good.py, line LINE\)"),
    ("do", '{"kind": "r = type(\'A\', (), {\'__repr__\': lambda self: 1/0})()"}',
     "ZeroDivisionError: division by zero"),
    ("do", '{"kind": "r = []\\nfor _ in range(10**5): r = [r]"}', "RecursionError: .*"),
    ("do", '{"kind": "crash"}', "do: the process ended with exit code 3"),
    ("do", '{"kind": "import ctypes; ctypes.string_at(0)"}', "do: the process was ended by signal 11"),
    ("do", '{"kind": "for fd in range(3, 9):\\n try: os.write(fd, bytes([91, 10]))\\n except OSError: pass"}',
     "do: the process replied out of turn"),
    ("do", '{"kind": "os.closerange(0, 99)"}', "do: the process ended with exit code .*"),
    ("unknown", "{}", "unknown: expected one of the functions offered, found no such function"),
])
def test_a_call_that_fails_is_told_in_a_sentence(name, content, told, offered):
    with pytest.raises(ValueError, match=rf"\A{told.replace('LINE', str(LINE))}\Z"):
        offered.call(f"functions.{name}", content)
    assert offered.call("functions.weather", '{"city": "Oslo"}') == "Oslo celsius None Nora"


def test_a_function_that_hangs_or_is_interrupted_ends_and_the_next_call_works(offered, monkeypatch):
    monkeypatch.setenv("MARK", mark := f"mark-{os.getpid()}")
    offered.close()  # the next process has the mark
    offered.call("functions.nothing", "")
    with interrupted(0.3):
        offered.call("functions.do", '{"kind": "time.sleep(99)"}')
    assert none_left(mark)
    offered.call("functions.nothing", "")
    monkeypatch.setattr(functions, "SECONDS", 0.5)
    with pytest.raises(ValueError, match="do: timed out after 0.5 s"):
        offered.call("functions.do", '{"kind": "os.system(\'sleep 99\')"}')
    assert none_left(mark)
    monkeypatch.setattr(functions, "SECONDS", 30)
    assert offered.call("functions.nothing", "") == "null" and processes(mark) == 1
    offered.close()
    assert none_left(mark)


DOC = '"""Says."""'


@pytest.mark.parametrize(("source", "told"), [
    (None, "expected a Python file, found none"),
    ("", "expected a function whose name does not begin with _, found none"),
    ("from json import dumps\nclass A: pass\ndef _f(): pass", "expected a function whose name does .*, found none"),
    ("def f(:", r"expected a file that can be imported, found SyntaxError: .* \(file.py, line 1\)"),
    ("\ndef f():\n  1/0\nf()", r"expected .*, found ZeroDivisionError: .* \(file.py, line 3\)"),
    ("import nowhere", r"expected .*, found ModuleNotFoundError: No module named 'nowhere' \(file.py, line 1\)"),
    ("x = '\xff'.encode('latin-1')\nraise SystemExit(x)", r"expected .*, found SystemExit: .* \(file.py, line 2\)"),
    ("import os; os._exit(3)", "expected a file that can be imported, but the process ended with exit code 3"),
    ("while True: pass", "expected a file that can be imported, but timed out after 0.5 s"),
    ("def f(x: int): pass", "f: expected a docstring that says what it does, found none .*"),
    (f"def f(x): {DOC}", "f, parameter x: expected an annotation, found none .*"),
    (f"def f(*args: int): {DOC}", r"f, parameter args: expected .* by its name, found \*args: int .*"),
    (f"def f(**more: int): {DOC}", r"f, parameter more: expected .* by its name, found \*\*more: int .*"),
    (f"def f(x: int, /): {DOC}", "f, parameter x: expected one that can be given by its name, found x: int .*"),
    (f"class A: pass\ndef f(y: int, x: A): {DOC}", "f, parameter x: expected a type that has a JSON .*, found x: .*"),
    (f"def f(y: int, x: 'Unknown'): {DOC}", "f, parameter x: expected a type that has .*, found x: 'Unknown' .*"),
    (f"async def f(): {DOC}", r"f: expected a function, found a coroutine \(a name that begins with _ keeps it .*"),
])
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(source, told, tmp_path, monkeypatch):
    path = tmp_path / "file.py"
    if source is not None:
        path.write_text(source, encoding="utf-8")
    if "while" in (source or ""):
        monkeypatch.setattr(functions, "SECONDS", 0.5)
    monkeypatch.setenv("MARK", str(tmp_path))
    with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}: {told}\Z"):
        functions.load(path)
    assert none_left(str(tmp_path))


@pytest.mark.parametrize("missing", ["pydantic", "docstring_parser"])
def test_a_missing_library_is_named(missing, tmp_path):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})")
    (tmp_path / "file.py").write_text(f"def f(): {DOC}")
    with pytest.raises(ValueError, match=f"^functions need {missing}: pip install pydantic docstring_parser$"):
        functions.load(tmp_path / "file.py")


# ---- apply_patch ----------------------------------------------------------------------------------------------------

GREET = "import sys\n\ndef greet(name):\n    print(name)\n\ndef part(name):\n    print(name)\n"


def tree(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().decode() for path in files}


def patch(text):
    return f"*** Begin Patch\n{text}\n*** End Patch"


@pytest.mark.parametrize(("text", "changed"), [
    ("*** Add File: new/a.txt\n+one\n+\n+ two", {"new/a.txt": "one\n\n two\n"}),
    ("*** Add File: empty", {"empty": ""}),
    ("*** Delete File: greet.py", {"greet.py": None}),
    ("*** Update File: greet.py\n-import sys\n+import os", {"greet.py": GREET.replace("sys", "os")}),
    ("*** Update File: greet.py\n@@ def part(name):\n-    print(name)\n+    pass",
     {"greet.py": GREET[:-16] + "    pass\n"}),
    ("*** Update File: greet.py\n@@\n-    print(name)\n+    pass\n*** End of File",
     {"greet.py": GREET[:-16] + "    pass\n"}),
    ("*** Update File: greet.py\n@@\n+end\n*** End of File", {"greet.py": GREET + "end\n"}),
    ("*** Update File: greet.py\n import sys\n+import os\n@@ def greet(name):\n-    print(name)\n+    pass\n@@\n"
     "-    print(name)\n+    return", {"greet.py": "import sys\nimport os\n\ndef greet(name):\n    pass\n\n"
                                               "def part(name):\n    return\n"}),
    ("*** Update File: greet.py\n@@ def part(name):\n@@ print(name)\n+    pass", {"greet.py": GREET + "    pass\n"}),
    ("*** Update File: greet.py\n@@\n import sys  \n\n-def greet(name):\t\n+def g(name):",  # white space behind
     {"greet.py": GREET.replace("greet", "g")}),
    ("*** Update File: greet.py\n def greet(name):\n-print(name)\n+    pass",  # and before
     {"greet.py": GREET.replace("    print(name)", "    pass", 1)}),
    ("*** Update File: greet.py\n*** Move to: a/hello.py", {"greet.py": None, "a/hello.py": GREET}),
    ("*** Update File: greet.py\n*** Move to: hello.py\n@@\n-import sys\n", {"greet.py": None, "hello.py": GREET[11:]}),
    ("*** Update File: greet.py\n-import sys\n\n*** Update File: greet.py\n-def greet(name):\n+def g():",
     {"greet.py": GREET[11:].replace("greet(name)", "g()")}),
    ("*** Delete File: greet.py\n*** Add File: greet.py\n+new", {"greet.py": "new\n"}),
    ("*** Add File: brief\n+x\n*** Delete File: brief", {}),
    ("*** Update File: crlf\n-a\n+A\n+B\n b", {"crlf": "A\r\nB\r\nb\r\n"}),
    ("*** Update File: open\n-b\n+B", {"open": "a\nB"}),
    ("*** Update File: link\n-in\n+IN", {"link": "IN\n", "dir/inner": "IN\n"}),
])
@pytest.mark.parametrize("form", [str, json.dumps, lambda text: json.dumps({"patch": text}),
                                  lambda text: text.replace("\n", "\r\n")])
def test_a_patch_is_applied(text, changed, form, folder):
    before = tree(folder)
    assert ApplyPatch(folder).call("functions.apply_patch", form(patch(text))) == "Done!"
    assert tree(folder) == {name: text for name, text in (before | changed).items() if text is not None}
    if (folder / "greet.py").exists():
        assert (folder / "greet.py").stat().st_mode & 0o777 == 0o750


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "root"
    (folder / "dir").mkdir(parents=True)
    for name, text in {"greet.py": GREET, "crlf": "a\r\nb\r\n", "open": "a\nb", "dir/inner": "in\n"}.items():
        (folder / name).write_bytes(text.encode())
    (folder / "greet.py").chmod(0o750)
    (folder / "bytes").write_bytes(b"")
    (tmp_path / "outside").write_text("secret\n")
    (folder / "link").symlink_to("dir/inner")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "up").symlink_to(tmp_path)
    return folder


ADD = "*** Add File: first\n+x\n"  # a part that would fit


@pytest.mark.parametrize(("text", "told"), [
    ("*** Add File: ../x\n+x", "patch: expected relative paths that stay inside the folder, found ../x"),
    ("*** Add File: dir/../../x\n+x", "patch: expected relative paths that stay .*"),
    ("*** Add File: /etc/x\n+x", "patch: expected relative paths that stay inside the folder, found /etc/x"),
    ("*** Update File: out\n-secret", "patch: expected relative paths that stay inside the folder, found out"),
    ("*** Delete File: out", "patch: expected relative paths that stay inside the folder, found out"),
    ("*** Add File: up/x\n+x", "patch: expected relative paths that stay inside the folder, found up/x"),
    ("*** Update File: greet.py\n*** Move to: ../x", "patch: expected relative paths that stay .*"),
    ("*** Delete File: .", "patch: expected relative paths that stay inside the folder, found ."),
    ("*** Delete File: dir", "dir: expected a file, found something else"),
    ("*** Update File: none\n-x", "none: expected a file, found none"),
    ("*** Delete File: none", "none: expected a file, found none"),
    ("*** Add File: greet.py\n+x", "greet.py: expected no such file, found one"),
    ("*** Update File: greet.py\n*** Move to: open", "open: expected no such file, found one"),
    ("*** Add File: greet.py/x\n+x", ".*"),
    ("*** Add File: a\n+x\n*** Add File: a/b\n+x", "patch: expected files, found a file in a file"),
    ("*** Update File: greet.py\n-nowhere", r"greet.py: expected, after line 0, .* found no \['nowhere'\]"),
    ("*** Update File: greet.py\n@@ nowhere\n-import sys", r"greet.py: expected, after line 0, .*"),
    ("*** Update File: greet.py\n@@ def part(name):\n-import sys", r"greet.py: expected, after line 6, .*"),
    ("*** Update File: greet.py\nimport sys", "greet.py: expected changes: lines with a space, .*, found import sys"),
    ("*** Add File: x\nx", "x: expected changes: lines with a space, .*, found x"),
    ("*** Delete File: greet.py\n-import sys", "greet.py: expected nothing after .*"),
    ("*** Rename File: greet.py", ".*"),
])
def test_a_patch_that_does_not_fit_changes_nothing(text, told, folder):
    before = tree(folder.parent)
    with pytest.raises((ValueError, OSError), match=rf"\A{told}\Z"):
        ApplyPatch(folder).call("functions.apply_patch", patch(ADD + text))
    assert tree(folder.parent) == before


@pytest.mark.parametrize("content", ["", "x", "*** Begin Patch", "*** End Patch", "*** Begin Patch\n*** End Patch",
                                     "{}", "[1]", f"*** Begin Patch\n{ADD}", f"{ADD}*** End Patch", '{"patch": 1}',
                                     patch("+x\n" + ADD)])
def test_what_is_no_patch_is_refused(content, folder):
    before = tree(folder)
    with pytest.raises(ValueError, match="^patch, (first|second|last) line: expected "):
        ApplyPatch(folder).call("functions.apply_patch", content)
    assert tree(folder) == before


EVERY_KIND = """\
*** Update File: greet.py
-import sys
*** Delete File: open
*** Add File: open/new/first
+x
*** Update File: dir/inner
*** Move to: far/away/inner
-in
+IN"""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("fails", "most"), [((Path, "write_bytes"), 3), ((shutil, "copy2"), 1), ((os, "replace"), 5)])
def test_a_patch_is_applied_whole_or_not_at_all(fails, most, error, folder, monkeypatch):
    """Whichever step fails; also no folder is left that was made for it."""
    before, places, real = tree(folder), sorted(folder.rglob("*")), getattr(*fails)
    for n in range(most + 1):
        count = iter(range(most + 1))

        def fail(*args, count=count, n=n):
            if next(count, None) == n:
                raise error
            return real(*args)

        monkeypatch.setattr(*fails, fail)
        call = partial(ApplyPatch(folder).call, "functions.apply_patch", patch(EVERY_KIND))
        if n == most:  # more such steps there are not
            assert call() == "Done!"
            break
        with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
            call()
        if isinstance(error, OSError):
            assert str(caught.value) == "patch: expected a folder that can be written, found No space left on device"
        assert tree(folder) == before and sorted(folder.rglob("*")) == places
    assert tree(folder) == {"greet.py": GREET[11:], "crlf": "a\r\nb\r\n", "open/new/first": "x\n", "bytes": "",
                            "far/away/inner": "IN\n", "out": "secret\n"}


@pytest.mark.parametrize(("name", "told"), [
    ("pipe", "pipe: expected a file, found something else"), ("loop", "loop: expected .*"),
    ("x" * 5000, "x{200}: expected a text that can be read, found File name too long"),
    ("a\0b", r"patch: expected relative paths .*, found 'a\\x00b'"),
    ("\x1b[31m", r"patch: expected relative paths .*, found '\\x1b\[31m'"),
    ("no-text", "no-text: expected a text that can be read, found UnicodeDecodeError"),
    ("large", "large: expected at most 16,777,216 bytes, found more"), ("crlf/x", ".*"),
    ("/proc/self/mem", "patch: expected relative paths .*, found /proc/self/mem")])
def test_what_is_no_text_is_not_read(name, told, folder):
    os.mkfifo(folder / "pipe")  # which nobody ever writes to
    (folder / "loop").symlink_to("loop")
    (folder / "no-text").write_bytes(b"\xff")
    with open(folder / "large", "wb") as file:
        file.truncate(2**40)
    for kind in ("Update", "Delete"):
        with pytest.raises(ValueError, match=rf"\A{told}\Z"):
            ApplyPatch(folder).call("functions.apply_patch", patch(f"*** {kind} File: {name}"))


def test_a_patch_with_a_long_line_of_blanks_takes_no_time(folder):
    begun = time.process_time()
    with pytest.raises(ValueError):
        ApplyPatch(folder).call("functions.apply_patch", patch("*** Add File: a" + " " * 200_000 + "b"))
    assert time.process_time() - begun < 5


LINES = st.lists(st.sampled_from(["", "a", " a", "b", "+", "-x", "@@", "*** End of File", "é"]), max_size=12)


@given(LINES, LINES)
def test_every_change_can_be_said(old, new):
    before, after = ("".join(f"{line}\n" for line in lines) for lines in (old, new))
    said = list(unified_diff(old, new, n=99, lineterm=""))[3:]
    assert updated(before, said, "file") == after


@pytest.mark.parametrize("yes", [True, False])
def test_a_patch_is_applied_after_a_yes(yes, folder):
    """The question has the patch in it, and is not asked about one that does not fit."""
    asked = []
    tool = ApplyPatch(folder, lambda patch: asked.append(patch) or yes)
    told = tool.call("functions.apply_patch", patch("*** Add File: new.txt\n+new"))
    assert told == ("Done!" if yes else "The user did not allow this patch.")
    assert (folder / "new.txt").exists() == yes and "+new" in asked[0]
    with pytest.raises(ValueError, match="none.txt"):
        tool.call("functions.apply_patch", patch("*** Delete File: none.txt"))
    assert len(asked) == 1


def test_a_patch_needs_a_folder(tmp_path):
    with pytest.raises(ValueError, match="expected a folder, found none"):
        ApplyPatch(tmp_path / "none")

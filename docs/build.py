"""Fills the chapters: code is cut from the source and output is printed by running, never typed.

    python docs/build.py            rewrites README.md and docs/*.md in place
    python docs/build.py --check    changes nothing; exit status 1 and a diff where a file is not what a run gives

A marker is an HTML comment; the fenced block below it belongs to the machine.

    <!-- code: gptoss.py:rms_norm -->       the source of a function, class, Class.method or assignment
    <!-- output: COMMAND -->                what the command prints (may span lines)
    <!-- terminal: COMMAND -->              the same as a person sees it in a terminal, without the colors
    <!-- run -->                            the Python block below is written by hand and run, all of a chapter in one
                                            session; the block after it is what it printed
"""

import argparse
import ast
import contextlib
import difflib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"<!-- (code|output|terminal): (.*?) -->\n```(\w*)\n(.*?)```$", re.S | re.M)
CELL = re.compile(r"<!-- run -->\n```python\n(.*?)```\n(\n```\n.*?```\n)?", re.S)


def source_of(place):
    """The lines of FILE:NAME, with its decorators."""
    file, _, name = place.partition(":")
    text = (ROOT / file).read_text(encoding="utf-8")
    nodes = ast.parse(text).body
    for part in name.split("."):
        node = next((node for node in nodes if part in names_of(node)), None)
        if node is None:
            raise SystemExit(f"docs/build.py: {place}: no such name in the file")
        nodes = getattr(node, "body", [])
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines) + "\n"


def names_of(node):
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [getattr(node, "name", None)]


def output_of(command, terminal):
    """What a command prints, run by the shell from the root, with `python` the one that runs this."""
    folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "COLUMNS": "100", "TERM": "dumb"}
    if terminal:
        child = "import pty, sys; sys.exit(pty.spawn(['sh', '-c', sys.argv[1]]) >> 8)"
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(child)} {shlex.quote(command)}"
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"docs/build.py: {command}: exit status {done.returncode}\n{done.stderr}")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace("\r\n", "\n").strip("\n").split("\n")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def fill(text):
    """The text of a chapter with all its blocks as they should be."""

    def block(match):
        kind, what, language, _ = match.groups()
        body = source_of(what) if kind == "code" else output_of(what, kind == "terminal")
        return f"<!-- {kind}: {what} -->\n```{language}\n{body}```"

    session = {}

    def cell(match):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(match[1], session)
        output = f"\n```\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"<!-- run -->\n```python\n{match[1]}```\n{output}"

    return CELL.sub(cell, MARKER.sub(block, text))


def main():
    parser = argparse.ArgumentParser(description="Fill the code and output blocks of README.md and docs/*.md.")
    parser.add_argument("--check", action="store_true", help="change nothing, show what would change")
    chapters = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    parser.add_argument("files", nargs="*", type=Path, default=chapters)
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    stale = False
    for path in args.files:
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale = True
            if args.check:
                names = (str(path), "as a run gives it")
                sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names))
            else:
                path.write_text(new, encoding="utf-8")
    return int(stale and args.check)


if __name__ == "__main__":
    sys.exit(main())

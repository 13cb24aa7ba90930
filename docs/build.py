"""Fills the chapters: code is cut from the source and output is printed by running, never typed.

    python docs/build.py            rewrites the pages in place: README.md, docs/, exercises/ and nano/README.md
    python docs/build.py --check    changes nothing; exit status 1 and a diff where a page is not what a run gives, and
                                    what docs/check.py finds: dead links, unknown names, chapters without their form

A marker is an HTML comment; the fenced block below it belongs to the machine. A page is filled from top to bottom.

    <!-- code: gptoss.py:rms_norm -->       the source of a function, class, Class.method or assignment
    <!-- output: COMMAND -->                what the command prints (may span lines)
    <!-- terminal: COMMAND -->              the same as a person sees it in a terminal, without the colors
    <!-- run -->                            the Python block below is written by hand and run, all of a chapter in one
                                            session; the block after it is what it printed
    <!-- is: EXPRESSION -->TEXT<!-- end -->     within a line of prose: TEXT is f"{EXPRESSION}" of the session at this
                                            place; `loss:.2f` gives the format too
"""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    import program

    program.begin()

import ast  # noqa: E402
import contextlib  # noqa: E402
import difflib  # noqa: E402
import io  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shlex  # noqa: E402
import subprocess  # noqa: E402

import check  # noqa: E402

import program  # noqa: E402

ROOT = check.ROOT
# One thread for the small model: it has no work for more, and two of them wait for each other where a machine is busy.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
MARKER = re.compile(r"""
    <!--\ (?P<kind>code|output|terminal):\ (?P<what>.*?)\ -->\n```(?P<language>\w*)\n.*?```$
  | <!--\ run\ -->\n```python\n(?P<cell>.*?)```\n(?:\n```\n.*?```\n)?
  | <!--\ is:\ (?P<expression>[^\n]*?)\ -->[^\n]*?<!--\ end\ -->
    """, re.S | re.M | re.X)
LOST = re.compile(r"^<!-- (?:code|output|terminal|run)\b.*|<!-- is:.*", re.M)


def source_of(place):
    """The lines of FILE:NAME, with its decorators."""
    file, _, name = place.partition(":")
    if not (ROOT / file).is_file():
        raise SystemExit(f"docs/build.py: {place}: no such file")
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


def fill(text, page):
    """The text of a page with all its blocks and figures as they should be."""
    session = {}

    def said(run, code, source):
        try:
            return run(code, session)
        except (Exception, SystemExit) as error:
            first = code.strip().splitlines()[0] if source is None else source
            raise SystemExit(f"{page}: `{first}`: {type(error).__name__}: {error}") from None

    def piece(match):
        kind, what, language, cell, expression = match.group("kind", "what", "language", "cell", "expression")
        if expression is not None:
            value = said(eval, f'f"""{{ {expression}}}"""', expression)  # three quotes: the expression has its own
            return f"<!-- is: {expression} -->{value}<!-- end -->"
        if cell is None:
            body = source_of(what) if kind == "code" else output_of(what, kind == "terminal")
            return f"<!-- {kind}: {what} -->\n```{language}\n{body}```"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            said(exec, cell, None)
        output = f"\n```\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"<!-- run -->\n```python\n{cell}```\n{output}"

    lost = LOST.search(MARKER.sub("", text))
    if lost:
        raise SystemExit(f"{page}: `{lost[0]}`: expected a marker as docs/build.py describes them")
    return MARKER.sub(piece, text)


@program.ends("docs/build.py", unread=1)
def main():
    parser = program.parser("docs/build.py", "Fill the code, the output and the figures of the pages.")
    parser.add_argument("--check", action="store_true", help="change nothing, show what would change and what is wrong")
    parser.add_argument("files", nargs="*", type=Path, default=check.pages(ROOT))
    args = parser.parse_args()
    files = [path.resolve() for path in args.files]
    os.chdir(ROOT)
    wrong = False
    for path in files:
        page = os.path.relpath(path)
        if not path.is_file():
            raise SystemExit(f"docs/build.py: {page}: no such file")
        old = path.read_text(encoding="utf-8")
        new = fill(old, page)
        if args.check:
            names = (page, "as a run gives it")
            found = [*difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names)]
            found += [complaint + "\n" for complaint in check.complaints(path)]
            sys.stdout.writelines(found)
            wrong |= bool(found)
        elif new != old:
            path.write_text(new, encoding="utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

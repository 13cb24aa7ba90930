"""A Python file as a page: the commentary on the left, the code that it belongs to on the right.

The page is a list of rows. A row begins at a function or a class, or at a comment that has its lines to itself. Its
commentary is that comment or the docstring, as prose; its code is what follows, up to the next row. Comments at the end
of a line stay in the code. No line is lost: each line of the file has its anchor, #L12, in one column or the other, and
each function, class and constant has its name: #Model.attend.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from html import escape
from inspect import cleandoc

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

HEADING = re.compile(r"# ---- (.*?) -+$")
PROSE = MarkdownIt("zero").enable(["code", "backticks"])  # paragraphs, indented blocks as they stand, `names`


@dataclass
class Row:
    commentary: list = field(default_factory=list)  # HTML
    spoken: list = field(default_factory=list)  # numbers of the lines that became commentary
    code: list = field(default_factory=list)  # numbers of the lines that stay code


def definitions(tree, prefix=""):
    """(qualified name, node) of a module's functions, classes and constants, and of its classes' methods."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.") if isinstance(node, ast.ClassDef) else ()
        elif not prefix and isinstance(node, ast.Assign):
            yield from ((target.id, node) for target in node.targets if isinstance(target, ast.Name))


def docstring(node):
    """The docstring and the numbers of its lines, if it has them to itself."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        if first.lineno > getattr(node, "lineno", 0):
            return first.value.value, range(first.lineno, first.end_lineno + 1)
    return "", range(0)


def prose(text):
    return PROSE.render(cleandoc(text))


def summary(text):
    """The first sentence of a file's docstring, as HTML."""
    return PROSE.renderInline(re.split(r"(?<=[.])\s", ast.get_docstring(ast.parse(text)) or "", maxsplit=1)[0])


def rows(text, links):
    """The rows of a source text. links: {name: HTML of the links to the chapters that show it}."""
    tree, lines = ast.parse(text), text.splitlines()
    comments = {token.start[0]: token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
                if token.type == tokenize.COMMENT and lines[token.start[0] - 1].lstrip().startswith("#")}
    starts, documented = {}, {}
    for name, node in definitions(tree):
        if not isinstance(node, ast.Assign):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            starts.setdefault(first, (name, node))
            documented.update(dict.fromkeys(docstring(node)[1], node))
    words, numbers = docstring(tree)
    row = Row([prose(words)], list(numbers))
    found = [row]
    documented.update(dict.fromkeys(numbers, tree))

    def begin():
        nonlocal row
        if any(lines[number - 1].strip() for number in row.code):
            row = Row()
            found.append(row)

    block = []  # a comment of several lines, its text
    for number, line in enumerate(lines, start=1):
        heading = HEADING.match(line)
        if number in starts:
            begin()
            name, node = starts[number]
            explained = "".join(f'<p class="explained">{link}</p>' for link in links.get(name, []))
            row.commentary.append(f'<h3 id="{name}">{name}</h3>{explained}{prose(docstring(node)[0])}')
        if heading:
            begin()
            row.commentary.append(f"<h2 id=\"{anchor(heading[1])}\">{escape(heading[1])}</h2>")
            row.spoken.append(number)
        elif number in comments:
            if not block:
                begin()
            block.append(comments[number][1:])
            row.spoken.append(number)
            if number + 1 not in comments or HEADING.match(lines[number]):
                row.commentary.append(prose("\n" + "\n".join(block)))
                block = []
        elif number in documented:
            if documented[number] is not tree:
                row.spoken.append(number)
        else:
            row.code.append(number)
    return found


def anchor(heading):
    return "section-" + re.sub(r"\W+", "-", heading.lower()).strip("-")


def page(path, text, links):
    """The HTML of the whole page."""
    colored = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).split("\n")
    names = {}
    for name, node in definitions(ast.parse(text)):
        if isinstance(node, ast.Assign):
            names[node.lineno] = names.get(node.lineno, "") + f'<span id="{name}"></span>'
    html = [f'<h1>{escape(path)}</h1>\n<div class="annotated">\n']
    for row in rows(text, links):
        while row.code and not colored[row.code[-1] - 1].strip():
            row.spoken.append(row.code.pop())
        while row.code and not colored[row.code[0] - 1].strip():
            row.spoken.append(row.code.pop(0))
        anchors = "".join(f'<span id="L{number}"></span>' for number in row.spoken)
        code = "".join(f'<span class="line" id="L{number}">{names.get(number, "")}<a href="#L{number}" '
                       f'data-line="{number}" aria-label="line {number}"></a>{colored[number - 1]}\n</span>'
                       for number in row.code)
        code = f'<div class="highlight"><pre tabindex="0"><code>{code}</code></pre></div>' if code else ""
        said = f'<div class="commentary no-copy">{anchors}{"".join(row.commentary)}</div>'
        html.append(f'<div class="row">{said}{code}</div>\n')
    return "".join(html) + "</div>\n"

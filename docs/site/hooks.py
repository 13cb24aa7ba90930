"""What mkdocs (mkdocs.yml) does not do by itself: the site is made of the same files that GitHub shows, as they are.

- Links may lead out of docs/: the site has a page for each file of Markdown and of Python, wherever it lies in the
  repository. A link to what has no page is a warning, and `mkdocs build --strict` fails.
- Markdown is read by markdown-it, which reads it as GitHub does; headings get GitHub's anchors. Python-Markdown, which
  mkdocs brings, sees empty pages.
- Formulas become MathML, which browsers draw by themselves. Nothing is fetched from another server.
- Sources become annotated pages (annotate.py), and the code in a chapter links to its place there.
"""

import logging
import posixpath
import re
import sys
from html import escape
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mkdocs.structure.files import File, Files
from mkdocs.structure.toc import get_toc
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import annotate  # noqa: E402
import check  # noqa: E402

ROOT = check.ROOT
SOURCES = ("", "tools", "train", "evals", "bench", "exercises", "docs", "docs/pictures")  # their Python files are pages
FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$`(?P<code>[^`]+)`\$"
                     r"|\$(?P<line>(?![\s$])[^$]*?(?<![\s\\]))\$(?!\d)", re.S)
PLACE = re.compile(r"<!-- code: (\S+?):(\S+) -->")
log = logging.getLogger("mkdocs.plugins.hooks")


CONTENTS = "source.py"  # the page that lists the sources; no file


class Page(File):
    """A file of the repository that becomes a page, whatever its name ends in."""

    def is_documentation_page(self):
        return True


# ---- Which files, and where they lie --------------------------------------------------------------------------------

def sources():
    """The Python files with a page, in the order in which README.md names them."""
    order = read("README.md")
    for folder in SOURCES:
        names = [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.py") if path.stat().st_size]
        yield from sorted(names, key=lambda name: (order.find(f"]({name})") % len(order), name))


def address(name):
    """Where a file of the repository lies on the site."""
    if name.endswith(".py"):
        return "source/index.html" if name == CONTENTS else f"source/{name.removesuffix('.py')}/index.html"
    if name == "README.md":
        return "project/index.html"
    inner = name.removeprefix("docs/")
    return posixpath.normpath(re.sub(r"(README)?\.md$", "/index.html", inner)).lstrip("/")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def title(name):
    """A page's name in the navigation: its heading up to a colon, a chapter's with its number."""
    if name == "README.md":
        return "The project"  # its heading is the site's name
    heading = check.HEADING.search(check.prose(read(name)))[2].replace("`", "").partition(":")[0]
    number = re.match(r"docs/(\d\d)-", name)
    return f"{int(number[1])}. {heading}" if number and not heading[0].isdigit() else heading


def on_files(files, config):
    """All pages, what they show or link to, and a theme's own files."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    pages = [path.relative_to(ROOT).as_posix() for path in check.pages(ROOT)]
    linked = {"docs/site/site.css"}
    for name in pages:
        for match in check.TARGET.finditer(check.prose(read(name))):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[1] or match[2] or match[3]))
            linked |= {target} if (ROOT / target).is_file() and not target.endswith((".md", ".py")) else set()
    for kind, names in ((Page, [*pages, *sources(), CONTENTS]), (File, sorted(linked))):
        kept += [kind(name, str(ROOT), config.site_dir, True, dest_uri=address(name)) for name in names]
    front = "docs/README.md"
    chapters = [name for name in pages if check.CHAPTER.fullmatch(posixpath.basename(name))]
    beside = [name for name in pages if name not in (front, *chapters)]
    config.nav = [{"The course": front},
                  {"Chapters": [{title(name): name} for name in chapters]},
                  {"Beside the path": [{title(name): name} for name in beside] + [{"The sources": CONTENTS}]}]
    EXPLAINED.clear()
    for name in chapters:
        for file, part in PLACE.findall(read(name)):
            EXPLAINED.setdefault((file, part), {})[name] = title(name)
    return Files(kept)


EXPLAINED = {}  # (file, name in it): {chapter that shows it: its title}


def on_serve(server, config, builder):
    for name in [*sources(), *(str(path.relative_to(ROOT)) for path in check.pages(ROOT))]:
        server.watch(str(ROOT / name))


# ---- Markdown -------------------------------------------------------------------------------------------------------

def formula(state, silent):
    match = FORMULA.match(state.src, state.pos)
    if match and not silent:
        token = state.push("formula", "math", 0)
        token.content, token.meta = match["block"] or match["code"] or match["line"], {"block": bool(match["block"])}
    state.pos = match.end() if match else state.pos
    return bool(match)


def render_formula(renderer, tokens, n, options, env):
    text = tokens[n].content.strip()
    known = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", text)  # two names for what is drawn alike
    try:
        result = convert(known, display="block" if tokens[n].meta["block"] else "inline")
    except Exception as error:  # the package has a class for each fault, without a common one
        result = f"\\{type(error).__name__}"
    if re.search(r">\\\w|>&<|^\\", result):
        log.warning("%s: $%s$: a formula that cannot be drawn", env["name"], text)
    return f'<span class="formula">{result}</span>' if tokens[n].meta["block"] else result


def render_code(renderer, tokens, n, options, env):
    text, language = tokens[n].content, tokens[n].info.strip()
    if language == "math":
        tokens[n].content, tokens[n].meta = text, {"block": True}
        return f"<p>{render_formula(renderer, tokens, n, options, env)}</p>\n"
    try:
        colored = highlight(text, get_lexer_by_name(language or "text", stripnl=False), HtmlFormatter(nowrap=True))
    except ClassNotFound:
        colored = escape(text)
    kind = "highlight" if language else "highlight printed no-copy"
    return f'<div class="{kind}"><pre tabindex="0"><code>{colored}</code></pre></div>\n'


def render_html(renderer, tokens, n, options, env):
    """HTML as it is, with its links. Comments go; the marker of code that was cut becomes a link to its place."""

    def place(match):
        file, part = match.groups()
        href = resolve(f"/{file}#{part}", env)
        return f'<p class="from"><a href="{href}">{file}: {part}</a></p>'

    html = re.sub(r'\b(src|srcset|href)="([^"]+)"', lambda match: f'{match[1]}="{resolve(match[2], env)}"',
                  tokens[n].content)
    return check.COMMENT.sub("", PLACE.sub(place, html))


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
MARKDOWN.inline.ruler.before("escape", "formula", formula)
for rule, kinds in {render_formula: ["formula"], render_code: ["fence", "code_block"],
                    render_html: ["html_block", "html_inline"]}.items():
    for kind in kinds:
        MARKDOWN.add_render_rule(kind, rule)
MARKDOWN.add_render_rule("table_open", lambda *_: '<div class="table"><table>\n')  # a box to scroll in
MARKDOWN.add_render_rule("table_close", lambda *_: "</table></div>\n")


def resolve(target, env):
    """The address of a link's target, as seen from the page; "/..." is a path from the root of the repository."""
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return target
    files, folder = env["files"], posixpath.dirname(env["name"])
    name = posixpath.normpath(posixpath.join("/", folder, path)).lstrip("/")
    file = files.get_file_from_path(name) or files.get_file_from_path(posixpath.join(name, "README.md"))
    if file is None and (ROOT / name).is_dir():
        file, anchor = files.get_file_from_path(CONTENTS), name if name in SOURCES else ""
    if file is None:
        log.warning("%s: the link %s leads to no page of the site", env["name"], target)
        return target
    if name.endswith(".py"):
        anchor = anchor.partition("-")[0]  # of a range of lines, the first
    return file.url_relative_to(env["from"]) + (f"#{anchor}" if anchor else "")


def render(text, env):
    """HTML of a page, and its headings for the table of contents."""
    tokens, counts, contents = MARKDOWN.parse(text, env), {}, [{"level": 0, "children": []}]
    for token, inline in zip(tokens, [*tokens[1:], None], strict=True):
        for child in token.children or []:
            for name in {"href", "src"} & set(child.attrs):
                child.attrSet(name, resolve(str(child.attrs[name]), env))
        if token.type == "heading_open":
            name = check.slug(inline.content)
            counts[name] = counts.get(name, -1) + 1
            name = f"{name}-{counts[name]}" if counts[name] else name
            token.attrSet("id", name)
            words = escape(inline.content.replace("`", ""))
            entry = {"level": int(token.tag[1]), "id": name, "name": words, "children": []}
            while contents[-1]["level"] >= entry["level"]:
                contents.pop()
            contents[-1]["children"].append(entry)
            contents.append(entry)
    return MARKDOWN.renderer.render(tokens, MARKDOWN.options, env), contents[0]["children"]


# ---- Pages ----------------------------------------------------------------------------------------------------------

def on_page_read_source(page, config):
    return ""  # Python-Markdown gets nothing to read


def on_page_markdown(markdown, page, config, files):
    name = page.file.src_uri
    if name.endswith(".py"):
        page.meta |= {"title": "The sources" if name == CONTENTS else name, "hide": ["navigation", "toc"]}
    return ""


def on_page_content(html, page, config, files):
    name = page.file.src_uri
    env = {"name": name, "from": page.file, "files": files}
    if name == CONTENTS:
        return contents_of_sources(env)
    if name.endswith(".py"):
        links = {}
        for (file, part), chapters in EXPLAINED.items():
            if file == name:
                links[part] = [f'explained in <a href="{resolve("/" + chapter, env)}">{escape(called)}</a>'
                               for chapter, called in chapters.items()]
        back = f'<p class="from"><a href="{resolve("/" + CONTENTS, env)}">The sources</a></p>\n'
        return back + annotate.page(name, read(name), links)
    html, contents = render(read(name), env)
    page.toc = get_toc(contents)
    return html


def contents_of_sources(env):
    """A list of the sources, with the first sentence of each."""
    html, folder = ["<h1>The sources</h1>\n<p>Each file is a page: what it says beside what it does.</p>\n"], None
    for name in sources():
        if posixpath.dirname(name) != folder:
            folder = posixpath.dirname(name)
            html.append(f'<h2 id="{folder or "core"}">{folder + "/" if folder else "The core"}</h2>\n')
        html.append(f'<p><a href="{resolve("/" + name, env)}">{name}</a>: {annotate.summary(read(name))}</p>\n')
    return "".join(html)

"""The site, built: every page is there, every link leads somewhere, and nothing is fetched from elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)
annotate = hooks.annotate

FOLDERS = (".", "tools", "train", "evals", "bench", "exercises")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")) if path.stat().st_size]
CHAPTERS = sorted((ROOT / "docs").glob("[0-9][0-9]-*.md"))


class Reader(HTMLParser):
    """What a page links to, what it fetches, and its anchors."""

    def __init__(self, html):
        super().__init__()
        self.links, self.resources, self.ids = [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src", "srcset", "data", "poster"):
                (self.links if tag == "a" else self.resources).append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{address: HTML} of the site, and its directory."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return {str(path.relative_to(out)): path.read_text(encoding="utf-8") for path in out.rglob("*.html")}, out


def article(html):
    return re.search(r"<article.*?</article>", html, re.S)[0]


def test_every_page_is_there(site):
    pages, _ = site
    assert "<h1" in article(pages["index.html"])
    for path in [*CHAPTERS, ROOT / "docs" / "glossary.md"]:
        assert f"{path.stem}/index.html" in pages
    for name in ("project", "nano", "source"):
        assert f"{name}/index.html" in pages
    for path in SOURCES:
        name = path.relative_to(ROOT)
        assert f"<h1>{name}</h1>" in pages[f"source/{name.with_suffix('')}/index.html"]


def test_chapters_follow_each_other(site):
    pages, _ = site
    chapters = [re.match(r"(\d\d-[^/]*)/$", link) for link in Reader(pages["index.html"]).links]
    assert list(dict.fromkeys(match[1] for match in chapters if match)) == [path.stem for path in CHAPTERS]


def test_nothing_comes_from_another_server(site):
    pages, out = site
    for name, html in pages.items():
        assert [target for target in Reader(html).resources if re.match(r"([a-z]+:)?//", target)] == [], name
    for path in out.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//|@import", path.read_text(encoding="utf-8")) == [], path


def test_every_link_within_the_site_leads_somewhere(site):
    pages, out = site
    read = {name: Reader(html) for name, html in pages.items() if name != "404.html"}  # which is shown anywhere
    for name, page in read.items():
        for target in page.links + page.resources:
            path, _, anchor = unquote(target).partition("#")
            if re.match(r"[a-z]+:", target) or anchor.startswith("__"):  # the theme's own
                continue
            file = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            file = os.path.normpath(os.path.join(file, "index.html")) if (out / file).is_dir() else file
            assert (out / file).is_file(), f"{name}: {target}"
            assert not anchor or anchor in read[file].ids, f"{name}: {target}"


def test_pages_show_what_they_are_made_of(site):
    pages, _ = site
    for path in CHAPTERS:
        html, text = article(pages[f"{path.stem}/index.html"]), path.read_text(encoding="utf-8")
        assert "<!--" not in html
        assert html.count("<details") == text.count("<details")
        assert html.count('class="formula"') == len(re.findall(r"\$\$.+?\$\$", text, re.S))
        assert html.count("<img") == text.count("![")


def test_every_line_of_a_source_has_its_place(site):
    pages, _ = site
    for path in SOURCES:
        name, text = path.relative_to(ROOT).with_suffix(""), path.read_text(encoding="utf-8")
        found = re.findall(r'id="L(\d+)"', pages[f"source/{name}/index.html"])
        assert sorted(map(int, found)) == list(range(1, len(text.splitlines()) + 1)), path


def test_code_and_chapters_lead_to_each_other(site):
    pages, _ = site
    source = pages["source/gptoss/index.html"]
    assert 'id="Model.attend"' in source and 'id="OPERATIONS"' in source
    row = re.search(r'<h3 id="attention">.*?</h3>(.*?)</pre>', source, re.S)[1]
    assert 'explained in <a href="../../04-attention/">4. Attention</a>' in row
    assert "Grouped-query attention of the last T of S positions" in row.partition("<code>")[0]
    assert '<a href="../source/gptoss/#attention">gptoss.py: attention</a>' in pages["04-attention/index.html"]


# ---- Markdown and sources, in small ---------------------------------------------------------------------------------

def render(text):
    return hooks.render(text, {"name": "docs/x.md", "from": None, "files": hooks.Files([])})[0]


def test_markdown_is_read_as_github_reads_it():
    html = render("1. One\n\n   <details><summary>Answer</summary>\n\n   **So.**\n\n   </details>\n\n"
                  "2. Two <!-- is: x -->3<!-- end -->\n\n| a |\n|---|\n| `x \\| y` |\n")
    assert html.count("<ol>") == 1 and "<strong>So.</strong>" in html and "Two 3" in html
    assert "<code>x | y</code>" in html
    assert 'id="why-1"' in render("## Why?\n\n## Why?\n")


@pytest.mark.parametrize(("text", "count"), [
    ("$x_i$ and $\\sqrt{D}$", 2), ("$$\na_1\n$$", 1), ("$`x_i`$", 1), ("It costs $5 and $6.", 0), ("`$x$` \\$x$", 0),
    ("```math\nx\n```", 1), ("$x_1 * y$ and $a * b$", 2), ("| $x_i$ |\n|---|\n", 1),
])
def test_formulas_become_mathml(text, count):
    html = render(text)
    assert html.count("<math") == count and "<em>" not in html


@pytest.mark.parametrize(("text", "said"), [
    ("$\\nosuch{x}$", "docs/x.md: $\\nosuch{x}$: a formula that cannot be drawn"),
    ("$\\frac{a}{$", "docs/x.md: $\\frac{a}{$: a formula that cannot be drawn"),
    ("[a](none.md)", "docs/x.md: the link none.md leads to no page of the site"),
    ('<img src="none.svg">', "docs/x.md: the link none.svg leads to no page of the site"),
])
def test_what_cannot_be_shown_is_a_warning(text, said, caplog):
    render(text)
    assert caplog.messages == [said]


def test_commentary_stands_beside_its_code():
    text = '"""A file."""\nimport json\n\nSIZE = 1  # small\n\n\n# ---- Part -----\n\n# why\n# so\ndef f():\n'
    text += '    """Says `f`.\n\n        a  b\n    """\n    x = 1\n    # then\n    return x\n\n\n'
    text += 'class A:\n    def g(self):\n        "Short."\n'
    rows = annotate.rows(text, {"f": ["<a>4</a>"]})
    assert [row.code for row in rows] == [[2, 3, 4, 5, 6], [8, 11, 16], [18, 19, 20], [21], [22]]
    assert [row.spoken for row in rows] == [[1], [7, 9, 10, 12, 13, 14, 15], [17], [], [23]]
    commentary = ["".join(row.commentary) for row in rows]
    assert commentary[0] == "<p>A file.</p>\n"
    assert "<h2" in commentary[1] and "<p>why\nso</p>" in commentary[1] and '<h3 id="f">f</h3>' in commentary[1]
    assert "<p>Says <code>f</code>.</p>" in commentary[1] and "a  b" in commentary[1] and "<a>4</a>" in commentary[1]
    assert commentary[2] == "<p>then</p>\n"
    assert '<h3 id="A.g">A.g</h3><p>Short.</p>' in commentary[4]
    html = annotate.page("x.py", text, {})
    assert [f'id="L{n}"' in html for n in range(1, 24)] == [True] * 23 and 'id="SIZE"' in html

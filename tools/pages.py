"""Pages as the browser shows them: HTML, Markdown or plain text in, lines of text with numbered links out.

    <h1>Tea</h1><p>See <a href="/milk">milk</a>.</p>   ->   # Tea

                                                            See 【0†milk】.

A page is the least trusted text there is. The brackets 【】 are ours alone: wherever a page has them, also in a title,
in an address or as &#12304;, they become 〖〗. So no page can show a link or a citation that we did not make.
Characters that nobody sees are dropped, because they could tell the model what a person who reads along misses.

The form is the reference's: gpt_oss/tools/simple_browser/page_contents.py in github.com/openai/gpt-oss.
"""

import math
import re
import textwrap
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import count
from urllib.parse import unquote, urljoin, urlsplit

from checkpoint import expect

HTML, MARKDOWN, TEXT = "text/html", "text/markdown", "text/plain"
WIDTH = 80  # columns of a line
LONG = 100 * WIDTH  # textwrap takes time that grows with the square of a word's length: it gets no longer pieces
LINK = re.compile(r"【[\d\n]+†([^†】]+)(?:†[^†】]+)?】")  # in wrapped text: a line can end anywhere in it

UNSEEN = {"script", "style", "template", "math", "svg", "iframe", "object"}
LINES = {"br", "caption", "dd", "dt", "figcaption", "li", "option", "summary", "tr"}  # begin and end a line
PARAGRAPHS = {"address", "article", "aside", "blockquote", "details", "div", "dl", "fieldset", "figure", "footer",
              "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section",
              "table", "ul"}  # have an empty line around them too
AROUND = {"sup": ("^{", "}"), "sub": ("_{", "}"), "hr": ("* * *", ""), "td": (" | ", ""), "th": (" | ", "")}


@dataclass
class Page:
    """`links[n]`: the address behind 【n†...】. A page of search results has no url. A page that shows where something
    was found in another has that as its `origin`, and in `found` the line of each of its links."""
    url: str
    title: str
    text: str
    links: list = field(default_factory=list)
    origin: "Page | None" = None
    found: list = field(default_factory=list)

    @cached_property
    def lines(self):
        """The text in lines of at most 80 columns: what "L12" means."""
        pieces = (piece for line in self.text.split("\n") for piece in re.findall(f".{{1,{LONG}}}", line) or [""])
        return [line for piece in pieces
                for line in textwrap.wrap(piece, WIDTH, replace_whitespace=False, drop_whitespace=False) or [""]]


def convert(url, kind, text, title=None):
    """The Page that `text` from `url` is. kind: its media type; what is neither HTML nor Markdown is shown as it is.

    title: instead of the page's own, which is its <title>, its first <h1>, or `label(url)`."""
    etree, MarkdownIt = libraries()
    reader = _Reader(url)
    if kind in (MARKDOWN, "text/x-markdown"):
        text, kind = MarkdownIt("commonmark").enable("table").render(text), HTML
    if kind in (HTML, "application/xhtml+xml"):
        parser = etree.HTMLParser(target=reader, encoding="utf-8", huge_tree=True)
        parser.feed(text.replace("\0", "").encode(errors="replace"))
        body = parser.close()
    else:
        body = clean(text)
    title = next(filter(None, map(one_line, (title or "", reader.heads["title"], reader.heads["h1"]))), label(url))
    url = re.sub(r"\s+", "%20", clean(url).strip())
    return Page(url, title, f"\nURL: {url}\n" + body.strip("\n"), list(reader.ids))


def libraries():
    """lxml's etree and markdown-it's MarkdownIt, or a ValueError that says how to get them.

    (Not html.parser of the standard library: 60 KB of "<a b=" keep it busy for half a minute.)"""
    try:
        from lxml import etree
        from markdown_it import MarkdownIt
    except ImportError as error:
        expect(False, ValueError, "browser", "lxml and markdown-it-py (pip install lxml markdown-it-py)", str(error))
    return etree, MarkdownIt


# ---- Text that can do no harm ---------------------------------------------------------------------------------------

@cache
def _harmless(character):
    if unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t":
        return ""
    return {"【": "〖", "】": "〗", "◼": "◾"}.get(character, character)


def clean(text):
    """Without 【】◼, which are markup, and without what cannot be seen: Unicode's categories Cc (control characters),
    Cf (zero-width spaces, marks that turn the direction of text, tags) and Cs (half characters)."""
    return "".join(map(_harmless, text.replace("\r\n", "\n").replace("\r", "\n")))


def one_line(text, most=1024):
    """`text`, cleaned, as one line of at most so many characters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def label(url):
    """A short name for an address: the domain of a web page, the path of a file."""
    return one_line(urlsplit(url).netloc.rpartition("@")[2] or unquote(url))


def without_links(text):
    """Their text instead of links, in as many lines."""
    return LINK.sub(lambda link: link[1] + "\n" * (link[0].count("\n") - link[1].count("\n")), text)


# ---- HTML -----------------------------------------------------------------------------------------------------------

class _Reader:
    """Is told by lxml what a page consists of, and writes down what a person would read. Each tag is closed, <br> too.

    `ids`: {address: id of its link}. `heads`: what the first <title> and the first <h1> say."""

    def __init__(self, url):
        self.base, self.domain = url, urlsplit(url).netloc
        self.ids, self.heads, self.images = {}, {"title": "", "h1": ""}, 0
        self.lines, self.line, self.marker = [], [], ""  # line: pieces of the last line; marker: what it begins with
        self.seen, self.inside, self.unseen = Counter(), Counter(), 0  # tags; open ones; open ones, from an UNSEEN on
        self.lists = []  # those that are open: the numbers of an <ol>, None for an <ul>
        self.href, self.anchor = None, []  # of the open link: its address, and pieces of its text

    def start(self, tag, attributes):
        if self.unseen or tag in UNSEEN:
            self.unseen += 1
            return
        self.end_line(tag)
        self.seen[tag] += 1
        self.inside[tag] += 1
        if re.fullmatch("h[1-6]", tag):
            self.marker += "#" * int(tag[1]) + " "
        elif tag == "a":
            self.end_link()
            self.href = attributes.get("href")
        elif tag == "base":
            self.base = self.whole(attributes.get("href", "")) or self.base
        elif tag == "img":
            name = one_line(attributes.get("alt") or attributes.get("title") or "")
            self.data(f"[Image {self.images}{': ' if name else ''}{name}]")
            self.images += 1
        elif tag in ("ul", "ol"):
            self.lists.append(count(1) if tag == "ol" else None)
        elif tag == "li":
            numbers = self.lists[-1] if self.lists else None
            self.marker = "  " * max(len(self.lists), 1) + (f"{next(numbers)}. " if numbers else "* ")
        elif tag in AROUND and (self.line or tag not in ("td", "th")):
            self.data(AROUND[tag][0])

    def end(self, tag):
        if self.unseen:
            self.unseen -= 1
            return
        if tag == "a":
            self.end_link()
        elif tag in ("ul", "ol"):
            self.lists.pop()
        elif tag in AROUND:
            self.data(AROUND[tag][1])
        self.end_line(tag)
        self.inside[tag] -= 1
        if tag == "li" or re.fullmatch("h[1-6]", tag):
            self.marker = ""  # it had no text

    def data(self, text):
        if self.unseen or not text:
            return
        for tag in self.heads:
            if self.inside[tag] and self.seen[tag] == 1:
                self.heads[tag] = (self.heads[tag] + text)[:LONG]
        if self.href is not None:
            self.anchor.append(text)
        elif self.inside["pre"]:
            first, *more = clean(text).split("\n")
            self.line.append(first)
            for line in more:
                self.end_line("br")
                self.line.append(line)
        elif not self.inside["title"]:
            text = re.sub(r"\s+", " ", clean(text))
            text = text if self.line and not self.line[-1].endswith(" ") else text.lstrip()
            self.line += [text] if text else []

    def close(self):
        self.end_link()
        self.end_line("p")
        return "\n".join(self.lines)

    def end_line(self, tag):
        """Ends the line if `tag` does so."""
        if tag not in LINES | PARAGRAPHS:
            return
        if self.href is not None:
            self.anchor.append(" ")  # a link goes on
            return
        text = "".join(self.line).rstrip()
        if text or self.inside["pre"]:
            self.lines.append("> " * self.inside["blockquote"] + self.marker + text)
            self.marker = ""
        self.line = []
        nested = self.lists and tag in ("ul", "ol")
        if tag in PARAGRAPHS and not nested and not self.marker and self.lines and self.lines[-1]:
            self.lines.append("")

    def whole(self, href):
        """The address that is meant by `href`, or None where it is none of a page."""
        try:
            url = urljoin(self.base, href.strip())
            return url if urlsplit(url).scheme in ("", "http", "https") else None  # "": of a file in a folder
        except ValueError:
            return None

    def end_link(self):
        """Writes what was read since <a> as a link, if it is one and if there is text to it."""
        if self.href is None:
            return
        href, text = self.href, one_line("".join(self.anchor), math.inf).replace("†", "‡")
        self.href, self.anchor = None, []
        url = None if href.startswith("#") else self.whole(href)
        if text and url:
            url = re.sub(r"^https?://(www\.)?arxiv\.org/", "https://ar5iv.org/", url)  # the same papers as HTML
            domain = urlsplit(url).netloc
            other = "" if domain == self.domain else "†" + label(url).replace("†", "‡")
            text = f"【{self.ids.setdefault(url, len(self.ids))}†{text}{other}】"
        self.line += [text] if text else []

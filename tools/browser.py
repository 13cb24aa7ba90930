"""The browser that gpt-oss was trained with: it searches, opens pages and finds words in them.

    browser.search  {"query": "tea"}              ->  [0] tea
                                                      **viewing lines [0 - 5] of 5**

                                                      L0:
                                                      L1: URL:
                                                      L2: # Search Results
                                                      L3:
                                                      L4:   * 【0†Tea】 Tea is a drink ...
    browser.open    {"id": 0}                     ->  [1] Tea (tea.md) ...
    browser.find    {"pattern": "milk"}           ->  [2] Find results for text: `milk` in `Tea` ...

Each display has a number, its cursor. The model names a display by it: to open a link that is there, and to cite lines,
as 【1†L5-L7】. The form and the errors are those of OpenAI's own tool, as the model was trained with something like it:
gpt_oss/tools/simple_browser/simple_browser_tool.py in github.com/openai/gpt-oss. Two things are not as there: a cursor
keeps its page when the address is opened again, and no argument, however wrong, ends the program.
"""

import json
import re
from html import escape
from urllib.parse import quote, unquote

from checkpoint import expect
from harmony import BROWSER
from tools.pages import HTML, TEXT, Page, convert, label, libraries, one_line, without_links
from tools.sources import RESULTS, Folder, SearXNG, Web, source_of  # noqa: F401  (to be found here)

VIEW_TOKENS = 1024  # of a page, where the model does not say how many lines it wants
MATCHES, MATCH_LINES, ABOVE = 50, 4, 4  # that find shows; of each; lines above a match when it is opened
CITATION = re.compile(r"【([0-9]{1,9})†([^†】]+)(?:†[^†】]+)?】")
BEGUN = re.compile(r"【[0-9]*(?:†[^†】]*(?:†[^†】]*)?)?\Z")
FUNCTIONS = {function.name: function.parameters for function in BROWSER.functions}
ARGUMENTS = {name: parameters["properties"] for name, parameters in FUNCTIONS.items()}
ARGUMENTS["search"] = ARGUMENTS["search"] | {"top_n": {"type": "number"}}  # OpenAI's tool takes that, too
NAMED = {int: ("number", "an integer"), str: ("string", "text"), bool: ("boolean", "true or false")}  # in JSON, by us


class BrowserError(ValueError):
    """What the model is told instead of a display."""


class Browser:
    """A tool (see conversation.py) that browses a source (see sources.py). tokenizer: counts what fits into a display.
    `page_stack[cursor]`: the pages that were displayed; `pages`: by address, those that were opened."""

    namespace = BROWSER

    def __init__(self, source, tokenizer):
        libraries()
        self.source, self.tokenizer = source, tokenizer
        self.pages, self.page_stack = {}, []

    def close(self):
        """Forgets all pages."""
        self.pages, self.page_stack = {}, []

    def call(self, recipient, content):
        """What the model is told: a display, or what was wrong."""
        try:
            arguments = json.loads(content) if content.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return json.dumps({"error": "Invalid function arguments"})
        name = recipient.partition(".")[2] or ("search" if "query" in arguments else
                                               "find" if "pattern" in arguments else "open")
        if name not in FUNCTIONS:
            return json.dumps({"error": f"Unknown function: {one_line(name)}"})
        try:
            return getattr(self, f"_{name}")(**_checked(name, arguments))
        except BrowserError as error:
            return str(error)

    # ---- What the model can call ------------------------------------------------------------------------------------

    def _search(self, query, **_):
        try:
            results = self.source.search(query)[:RESULTS]
        except (OSError, ValueError) as error:
            raise BrowserError(f"Error during search for `{one_line(query)}`: {_reason(error)}") from None
        items = [f'<li><a href="{escape(url)}">{escape(one_line(title) or url)}</a> {escape(summary)}</li>'
                 for title, url, summary in results]
        html = f"<h1>Search Results</h1><ul>{''.join(items)}</ul>" + "<p>Nothing was found.</p>" * (not items)
        return self._show(convert("", HTML, html, query))

    def _open(self, id=-1, cursor=-1, loc=-1, num_lines=-1, view_source=False, **_):
        if isinstance(id, str):
            page = self._fetch(id, view_source)
        else:
            page = self._page(cursor)
            if id >= len(page.links):
                raise BrowserError(f"Invalid link id `{id}`.")
            if id >= 0 and page.origin:
                line, page = page.found[id], page.origin
                loc = loc if loc >= 0 else line - ABOVE if line > ABOVE else line
            elif id >= 0:
                url = page.links[id]
                page = self._fetch(url, view_source) if view_source else self.pages.get(url) or self._fetch(url)
            elif view_source:
                page = self._fetch(page.url, view_source)
        return self._show(page, max(loc, 0), num_lines)

    def _find(self, pattern, cursor=-1, **_):
        page, pattern = self._page(cursor), pattern.lower()
        if not page.url or page.origin:
            raise BrowserError("Cannot run `find` on search results page or find results page")
        lines, found, n = without_links("\n".join(page.lines)).split("\n"), [], 0
        while n < len(lines) and len(found) < MATCHES:
            if pattern in lines[n].lower():
                found.append(n)
                n += MATCH_LINES
            else:
                n += 1
        matches = ["\n".join([f"# 【{id}†match at L{n}】", *lines[n : n + MATCH_LINES]]) for id, n in enumerate(found)]
        shown = one_line(pattern)
        return self._show(Page(f"{page.url}/find?pattern={quote(shown)}",
                               f"Find results for text: `{shown}` in `{page.title}`",
                               "\n\n".join(matches) or f"No `find` results for pattern: `{shown}`",
                               [page.url] * len(found), page, found))

    # ---- Pages ------------------------------------------------------------------------------------------------------

    def _page(self, cursor):
        last = len(self.page_stack) - 1
        if last < 0:
            raise BrowserError("No pages to access!")
        if not -1 <= cursor <= last:
            raise BrowserError(f"Cursor `{cursor}` is out of range. Available cursor indices: [0 - {last}].")
        return self.page_stack[cursor]

    def _fetch(self, url, view_source=False):
        """The page at an address, anew. view_source: as it is written."""
        try:
            found, kind, text = self.source.fetch(url.strip())
            page = convert(found, TEXT if view_source else kind, text)
        except (OSError, ValueError) as error:
            raise BrowserError(f"Error fetching URL `{one_line(url)}`: {_reason(error)}") from None
        if not view_source:
            self.pages[url] = self.pages[found] = page
        return page

    def _show(self, page, loc=0, num_lines=-1):
        """The display of a page from line `loc` on, which gets the next cursor."""
        last = len(page.lines) - 1
        if loc > last:
            raise BrowserError(f"Invalid location parameter: `{loc}`. Cannot exceed page maximum of {last}.")
        count = num_lines if num_lines > 0 else VIEW_TOKENS  # a line has at least one token
        lines = [f"L{n}: {line}" for n, line in enumerate(page.lines[loc : loc + count], loc)]
        if num_lines <= 0:
            ids = self.tokenizer.encode("\n".join(lines))[:VIEW_TOKENS]
            lines = lines[: self.tokenizer.decode_bytes(ids).count(b"\n") + 1]
        address = f" ({one_line(unquote(page.url))})" if page.url else ""
        self.page_stack.append(page)
        return "\n".join([f"[{len(self.page_stack) - 1}] {page.title}{address}",
                          f"**viewing lines [{loc} - {loc + len(lines) - 1}] of {last}**", "", *lines])

    # ---- Citations --------------------------------------------------------------------------------------------------

    def citations(self, text):
        """An answer with Markdown links for each 【cursor†L1-L2】, and [(start, end, url, title)] of these links in it.
        What cites a page that was never displayed, or a search, is left as it is."""
        new, links, done = "", [], 0
        for match in CITATION.finditer(text):
            [page] = self.page_stack[int(match[1]) :][:1] or [None]
            if page and page.url:
                page = page.origin or page
                name = re.sub(r"([\[\]\\])", r"\\\1", label(page.url))
                link = f" ([{name}]({quote(page.url, safe='%/:?#[]@!$&*+,;=')})) "
                new += text[done : match.start()]
                links.append((len(new), len(new) + len(link), page.url, page.title))
                new, done = new + link, match.end()
        return new + text[done:], links

    @staticmethod
    def unfinished(text):
        """Where a citation begins that `text` ends in the middle of; len(text) if there is none."""
        begun = BEGUN.search(text)
        return begun.start() if begun else len(text)


def _checked(function, arguments):
    """The arguments of a call as they are meant: null is as left out, 3.0 and "3" are 3 where a number can be."""
    known, where = ARGUMENTS[function], f"browser.{function}"
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for name in (*FUNCTIONS[function].get("required", ()), *arguments):
        expect(name in known, BrowserError, where, f"only the arguments {', '.join(known)}", one_line(name))
        value, kinds = arguments.get(name), known[name]["type"]
        if "number" in kinds and re.fullmatch(r"-?[0-9]{1,9}(\.0)?", str(value)):
            arguments[name] = value = int(float(value))
        fits = value != "" and NAMED.get(type(value), ["nothing"])[0] in kinds
        wanted = " or ".join(words for kind, words in NAMED.values() if kind in kinds)
        expect(fits, BrowserError, f"{where}, {name}", wanted, one_line("nothing" if value is None else repr(value)))
    return arguments


def _reason(error):
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)

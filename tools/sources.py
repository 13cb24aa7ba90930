"""Where a browser gets its pages from: a folder; the web; or a SearXNG instance, which searches the web.

A source is an object with

    search(query)   a list of (title, url, summary), best first
    fetch(url)      (url, media type, text) of a page; this url is where it was found in the end

which raise OSError or ValueError with one sentence. Pages come to this machine. So nothing that a page links to, or
that a server sends us on to, may lead to what this machine alone can reach: a router, a printer, a cloud's metadata.
"""

import ipaddress
import json
import math
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections import Counter
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes, urldefrag, urlencode, urljoin, urlsplit

from checkpoint import expect
from tools.pages import HTML, MARKDOWN, TEXT, convert, without_links

SIZE, SECONDS, REDIRECTS = 2**20, 10, 5  # of a page: bytes that are read; time for all of it; how often it may move
KINDS = {".html": HTML, ".htm": HTML, ".md": MARKDOWN, ".markdown": MARKDOWN, ".txt": TEXT, ".rst": TEXT}
READABLE = re.compile(r"text/.+|application/(.+\+)?(json|xml)")
FILES, TOTAL = 10_000, 256 * 2**20  # of a folder: files; bytes of them that are read, for each search
RESULTS, PASSAGE = 20, 60  # of a search; words of a passage
K1, B = 1.2, 0.75  # BM25: how soon a repeated word counts no more; how much the length of a passage counts


def text_of(data, charset="utf-8"):
    """The first SIZE bytes as text, which says so if there are more."""
    try:
        text = data[:SIZE].decode("utf-8" if charset.lower() == "punycode" else charset, "replace")  # a slow one
    except (LookupError, UnicodeError):  # no encoding that we know
        text = data[:SIZE].decode("utf-8", "replace")
    return (f"[Only the first {SIZE:,} bytes of this page are shown.]\n\n" if len(data) > SIZE else "") + \
        text.removeprefix("\ufeff")


# ---- A folder -------------------------------------------------------------------------------------------------------

class Folder:
    """The text, Markdown and HTML files of a directory tree, without hidden files and symbolic links. The url of a file
    is its path from `directory` on, "guide/first%20steps.md". What is no url of a listed file is refused, so none
    leads out."""

    def __init__(self, directory):
        self.directory = Path(directory).resolve()

    def files(self):
        """{url: path}"""
        found, total = {}, 0
        for place, folders, names in os.walk(self.directory):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
                if path.suffix.lower() in KINDS and path.is_file() and not path.is_symlink():
                    found[quote(os.fsencode(path.relative_to(self.directory).as_posix()))] = path
                    total += min(path.stat().st_size, SIZE)
            expect(len(found) <= FILES, ValueError, "the folder", f"at most {FILES:,} files", "more")
            expect(total <= TOTAL, ValueError, "the folder", f"at most {TOTAL:,} bytes of text", "more")
        return found

    def fetch(self, url):
        files = self.files()
        for name in (url, urldefrag(url).url):  # a # can belong to the name of a file
            name = quote(unquote_to_bytes(name))
            if name in files:
                return name, *self._read(files[name])
        raise ValueError("there is no such file in the folder, and nothing else can be opened")

    def search(self, query):
        """The files whose best passages fit best, with that passage as the summary. Title and path of a file count as
        words of each of its passages."""
        wanted, passages, counts = set(_words(query)), [], []
        for url, path in self.files().items():
            with suppress(OSError):  # what cannot be read is not found
                title, text = self._plain(url, *self._read(path))
                head, text = _words(f"{title} {unquote(url)}"), text.split()
                for n in range(0, len(text), PASSAGE):
                    passages.append((title, url, " ".join(text[n : n + PASSAGE])))
                    words = head + _words(passages[-1][2])
                    counts.append((Counter(filter(wanted.__contains__, words)), len(words)))
        best = {}
        for score, passage in sorted(zip(bm25(counts), passages, strict=True), key=lambda pair: -pair[0]):
            if score > 0:
                best.setdefault(passage[1], passage)
        return list(best.values())[:RESULTS]

    def _read(self, path):
        with open(path, "rb") as file:
            return KINDS[path.suffix.lower()], text_of(file.read(SIZE + 1))

    def _plain(self, url, kind, text):
        """The title and the text to be searched: Markdown as it is written, for it takes long to convert."""
        heading = re.search(r"^#+ (.+)", text, re.MULTILINE) if kind == MARKDOWN else None
        page = convert(url, TEXT if kind == MARKDOWN else kind, text, heading and heading[1])
        return page.title, without_links(page.text).split("\n", 2)[2]


def bm25(passages):
    """How well passages fit a query. Each is a Counter of the query's words in it, and the number of all its words.
    (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, section 3; with the 1 + of
    Lucene in the logarithm, so that a word that most passages have does not count against them.)"""
    average = sum(length for _, length in passages) / max(len(passages), 1)
    within = Counter(word for counts, _ in passages for word in counts)  # in how many passages a word is
    weight = {word: math.log(1 + (len(passages) - n + 0.5) / (n + 0.5)) for word, n in within.items()}
    return [sum(weight[word] * n * (K1 + 1) / (n + K1 * (1 - B + B * length / average)) for word, n in counts.items())
            for counts, length in passages]


def _words(text):
    """Words in lower case. Of scripts that write without spaces, each character is one."""
    return re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+", text.lower())


# ---- The web --------------------------------------------------------------------------------------------------------

class Web:
    """Pages of the web, by their addresses."""

    def search(self, query):
        raise ValueError("no search is configured; pages can only be opened by their addresses")

    def fetch(self, url):
        return download(url)


class SearXNG(Web):
    """The web, searched by the instance at `address`, which may be on this machine: a person has chosen it.
    API: https://docs.searxng.org/dev/search_api.html"""

    def __init__(self, address):
        self.address = address.rstrip("/")

    def search(self, query):
        try:
            *_, text = download(f"{self.address}/search?{urlencode({'q': query, 'format': 'json'})}", chosen=True)
            return [(str(result.get("title") or ""), str(result["url"]), str(result.get("content") or ""))
                    for result in json.loads(text)["results"][:RESULTS]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found = f"{type(error).__name__}: {error}"
            expect(False, ValueError, "SearXNG", "results (search.formats in its settings.yml must list json)", found)


def is_public(address):
    """Whether an IP address is one that everybody reaches; an IPv6 address also by the IPv4 address that it wraps."""
    address = ipaddress.ip_address(address)
    if address.version == 6:
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, RFC 6052
            address = ipaddress.IPv4Address(int(address) % 2**32)
        elif address not in ipaddress.ip_network("2000::/3") or address.sixtofour or address.teredo:
            return False
    return address.is_global and not address.is_multicast


def download(url, chosen=False):
    """(url, media type, text) of what is at an http or https address, after at most REDIRECTS redirects, within
    SECONDS. chosen: a person chose the address. Then it need not be public, and redirects are not followed.

    Raises OSError or ValueError. (The work has its own thread, since a look-up takes the time it wants, and the time
    limit of a socket is one for each read.)"""
    answers, sockets, deadline = queue.SimpleQueue(), [], time.monotonic() + SECONDS

    def work():
        try:
            answers.put(_follow(url, chosen, sockets, deadline))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=SECONDS)
    except queue.Empty:
        answer = TimeoutError(f"no complete answer within {SECONDS} seconds")
    finally:
        for connected in sockets:  # a read that still waits ends here
            with suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)
    if isinstance(answer, HTTPException):
        raise ValueError(f"the server did not answer as HTTP wants it ({type(answer).__name__})")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _follow(url, chosen, sockets, deadline):
    for _ in range(1 if chosen else 1 + REDIRECTS):
        parts = urlsplit(url)
        expect(parts.scheme in ("http", "https") and parts.hostname, ValueError, "the address",
               "one that begins with http:// or https://", url)
        expect("@" not in parts.netloc, ValueError, "the address", "no user name and no password", "one that has them")
        with _connect(parts, chosen, deadline) as connected:
            sockets.append(connected)
            connection = HTTPConnection(parts.hostname, 80)
            connection.sock = connected
            path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
            connection.request("GET", quote(path, safe="/?%:=&~+!$,;'@()*[]"), headers={
                "Host": parts.netloc.encode("idna").decode(), "Accept": "text/html, text/*, application/json",
                "User-Agent": "gptoss.py", "Connection": "close"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308) and answer.getheader("Location"):
                url = urljoin(url, answer.getheader("Location"))
                continue
            expect(answer.status == 200, ValueError, "the server", "a page", f"{answer.status} {answer.reason}")
            kind, coding = answer.headers.get_content_type(), answer.getheader("Content-Encoding", "identity")
            expect(READABLE.fullmatch(kind), ValueError, "the server", "text", kind)
            expect(coding.lower() == "identity", ValueError, "the server", "text as it is", f"it compressed: {coding}")
            data = answer.read(SIZE + 1)
            meta = re.search(rb"charset=[\"']?([\w-]+)", data[:1024])
            charset = answer.headers.get_content_charset() or (meta[1].decode() if meta else "utf-8")
            return url, kind, text_of(data, charset)
    raise ValueError("the server sends on to another address" + f" more than {REDIRECTS} times" * (not chosen))


def _connect(parts, chosen, deadline):
    """A socket that is connected to the host of an address. All that the name stands for is judged first, and then one
    of these very addresses is taken: looked up again, the name could stand for another."""
    host = parts.hostname.encode("idna").decode()
    found = socket.getaddrinfo(host, parts.port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
    expect(chosen or all(is_public(address) for *_, (address, *_) in found), ValueError, host, "a public address",
           "one of this machine or of a private network")
    for left, (*_, (address, port, *_)) in zip(range(len(found), 0, -1), found, strict=True):
        try:
            connected = socket.create_connection((address, port), max(deadline - time.monotonic(), 0.01) / left)
            break
        except OSError:
            if left == 1:
                raise
    connected.settimeout(max(deadline - time.monotonic(), 0.01))
    if parts.scheme == "https":
        return ssl.create_default_context().wrap_socket(connected, server_hostname=host)
    return connected


def source_of(argument):
    """The source that `--browser ARGUMENT` means: a directory, the address of a SearXNG instance, or "web"."""
    if os.path.isdir(argument):
        return Folder(argument)
    if argument.startswith(("http://", "https://")):
        return SearXNG(argument)
    expect(argument == "web", ValueError, "browser", "a directory, the address of a SearXNG instance or web", argument)
    return Web()

"""Looks at the built site in a browser, as a desktop and as a phone show it, light and dark.

    mkdocs build && python docs/site/look.py --out /tmp/look                every page
    mkdocs build && python docs/site/look.py --out /tmp/look 04-attention   pages whose address has one of these words

It makes a picture of each page in each look. It prints which pages are wider than their window, which ask another
server for something and which have an error; then the exit status is 1. A picture shows the first screen of a page,
with --whole all of it. It needs `pip install playwright` and a Chromium.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks for modules in docs/site/ only

if __name__ == "__main__":
    import program

    program.begin()

import threading  # noqa: E402
from functools import partial  # noqa: E402
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer  # noqa: E402

import program  # noqa: E402

LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
TOO_WIDE = "document.documentElement.scrollWidth > window.innerWidth"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@program.ends("docs/site/look.py", unread=1)
def main():
    parser = program.parser("docs/site/look.py", "Look at the built site in Chromium.")
    parser.add_argument("words", nargs="*", help="pages whose address has one of these words (otherwise all)")
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="what mkdocs built")
    parser.add_argument("--out", type=Path, required=True, help="directory for the pictures")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="Chromium's program")
    parser.add_argument("--whole", action="store_true", help="whole pages instead of the first screens")
    args = parser.parse_args()
    pages = sorted(path.parent.relative_to(args.site).as_posix() for path in args.site.rglob("index.html"))
    pages = [page for page in pages if not args.words or any(word in page for word in args.words)]
    if not pages:
        parser.error(f"{args.site}: expected pages that mkdocs built, found none")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        parser.error("expected the package playwright, found none: pip install playwright")
    args.out.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(args.site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here, faults = f"http://127.0.0.1:{server.server_port}/", []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        for width, scheme in LOOKS:
            view = browser.new_context(viewport={"width": width, "height": 1600}, color_scheme=scheme)
            tab = view.new_page()
            tab.on("request", lambda request, tab=tab: request.url.startswith((here, "data:", "blob:")) or
                   faults.append(f"{tab.url}: asks {request.url}"))
            tab.on("pageerror", lambda error, tab=tab: faults.append(f"{tab.url}: {error}"))
            tab.on("response", lambda response, tab=tab: response.status < 400 or
                   faults.append(f"{tab.url}: {response.url}: {response.status}"))
            for page in pages:
                tab.goto(here + ("" if page == "." else page + "/"), wait_until="load")
                if tab.evaluate(TOO_WIDE):
                    faults.append(f"{tab.url}: wider than a window of {width} pixels")
                name = f"{page.replace('/', '-').replace('.', 'front')}-{width}-{scheme}.png"
                tab.screenshot(path=args.out / name, full_page=args.whole)
            view.close()
        browser.close()
    server.shutdown()
    print(*dict.fromkeys(faults), f"{len(pages)} pages in {len(LOOKS)} looks, {len(set(faults))} faults", sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

"""Pictures of the page, to look at: `python page/shots.py FOLDER` writes them as PNG, in Chromium.

Light and dark, on a desktop and on a phone: as it opens, during a run, with a token chosen, two runs side by side, with
a change of the model, and a recorded run."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    import program

    program.begin()

import program  # noqa: E402
from page.chromium import Chromium  # noqa: E402

DONE = "!state.running && state.kept"
DESKTOP, PHONE = (1280, 800), (390, 844)


def click(browser, selector):
    browser.evaluate(f"document.querySelector({selector!r}).click()")


def choose(browser, text):
    """Chooses the last token with this text, as a tap does."""
    browser.evaluate(f"[...document.querySelectorAll('.token')].filter(token => token.textContent === {text!r})"
                     ".at(-1).click()")


def shots(browser, page, recorded, folder):
    for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for dark in (False, True):
            def take(scene, name=f"{name}-{'dark' if dark else 'light'}", whole=False):
                browser.evaluate("new Promise(done => setTimeout(done, 300))")
                browser.screenshot(folder / f"{name}-{scene}.png", whole=whole)

            how = {"dark": dark, "scale": 2 if size is PHONE else 1}
            browser.open(page, *size, **how)
            browser.wait("state.running && state.running.trace?.tokens.length > 150")
            take("1-running")
            browser.wait(DONE)
            take("2-done")
            take("3-done-whole", whole=True)
            browser.evaluate("state.layer = 1, state.head = 0")
            choose(browser, "=")
            take("4-token")
            click(browser, "#slow")
            click(browser, "#both")
            browser.wait(f"{DONE} && state.shown.length === 2 && state.shown[1].effort === 'high'")
            take("5-compared", whole=True)
            click(browser, "#change summary")
            click(browser, "#switch-noSink")
            browser.wait(f"{DONE} && state.shown.length === 2 && state.shown[1].changes.noSink")
            take("6-changed", whole=True)
            browser.open(recorded, *size, **how)
            take("7-recorded")


@program.ends("page/shots.py")
def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "shots")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, Chromium() as browser:
        page, recorded = Path(temporary, "page.html"), Path(temporary, "run.html")
        for options in (["--page", page], ["How many r's are in strawberry?", "--html", recorded]):
            subprocess.run([sys.executable, ROOT / "xray.py", *options], check=True, stdout=subprocess.DEVNULL)
        shots(browser, page, recorded, folder)


if __name__ == "__main__":
    sys.exit(main())

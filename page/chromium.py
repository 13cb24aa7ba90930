"""Chromium without a window, driven from Python: enough of the DevTools protocol to try a page and to take its picture.

    with Chromium() as browser:
        browser.open(path, width=390, height=844)
        browser.evaluate("document.title")

It speaks through a pipe, messages of JSON that end in a zero byte: no port, no library. On Debian, apt-get install
chromium. Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            "--remote-debugging-pipe")


class ChromiumError(RuntimeError):
    """Chromium is missing, or the page failed."""


class Chromium:
    """One browser with one page. `requests`: the addresses it asked for since `open`; `errors`: what went wrong."""

    session = None  # of the page, once there is one

    def __init__(self):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise ChromiumError(f"PATH: expected {NAMES[0]} (Debian: apt-get install chromium), found none")
        self.count, self.answers, self.requests, self.errors, self.unread = 0, {}, [], [], b""
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs, self.to = os.pipe()
        self.back, ours = os.pipe()

        def connect():  # Chromium reads from file 3 and writes to file 4
            first, second = os.dup(theirs), os.dup(ours)  # neither pipe end may be in the other's way
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen([program, *SWITCHES, f"--user-data-dir={self.profile.name}", "about:blank"],
                                        preexec_fn=connect, close_fds=False, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(ours)
        page = next(target for target in self.send("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        os.close(self.to)
        os.close(self.back)
        self.profile.cleanup()

    def send(self, method, timeout=120, **parameters):
        """Asks, and waits for the answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        end = time.monotonic() + timeout
        while self.count not in self.answers:
            self._read(end - time.monotonic(), method)
        answer = self.answers.pop(self.count)
        if "error" in answer:
            raise ChromiumError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _read(self, seconds, method):
        ready, _, _ = select.select([self.back], [], [], max(seconds, 0))
        data = os.read(self.back, 1 << 20) if ready else b""
        if not data:
            raise ChromiumError(f"{method}: expected an answer, found {'an end' if ready else 'none in time'}")
        *messages, self.unread = (self.unread + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"][:200])
            elif message["method"] == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])

    def look(self, width, height, dark=False, motion=True, scale=1):
        """The size of the window and what the reader prefers. Below 600 pixels it is a phone, with touch."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                  mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"}])

    def open(self, path, width=1280, height=800, **how):
        """Shows the file `path`, which may end in #..., and waits until it is loaded."""
        self.look(width, height, **how)
        self.send("Page.navigate", url="about:blank")
        file, _, fragment = str(path).partition("#")
        self.requests.clear()
        self.errors.clear()
        self.send("Page.navigate", url=Path(file).resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression, timeout=120):
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self.send("Runtime.evaluate", timeout, expression=expression, awaitPromise=True, returnByValue=True)
        if details := answer.get("exceptionDetails"):
            raise ChromiumError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, condition, seconds=60):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise ChromiumError(f"page: expected {condition} within {seconds} s, found it false")
            time.sleep(0.02)

    def press(self, key, code=0):
        """One key, by the name that JavaScript has for it."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        common = {"key": key, "windowsVirtualKeyCode": code or (ord(key.upper()) if len(key) == 1 else KEYS[key])}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path, whole=False):
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(picture["data"]))


KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
        "Home": 36, "End": 35}

"""For tests: the service in a thread on a free port, the same without a socket, and an engine that looks at prompts."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager

import httpx
import uvicorn
from scripted import Scripted

THOUGHT = "[channel]analysis[message]Hm.[end][start]assistant"
ANSWER = THOUGHT + "[channel]final[message]It is 4.[return]"


class Answering(Scripted):
    """Says what `reply`, a function of the prompt as text, or a text, gives. `open`: replies that have not ended."""
    context = 20_000

    def __init__(self, tokenizer, reply=ANSWER, pause=0.0):
        super().__init__(tokenizer)
        self.reply, self.pause, self.open = reply, pause, 0

    def generate(self, tokens, *, max_tokens=None, **sampling):
        self.prompts.append(tokens)
        self.replies = [self.reply(self.tokenizer.decode(tokens)) if callable(self.reply) else self.reply]
        return self.slowly(super().speak(max_tokens))

    def slowly(self, ids):
        self.open += 1
        try:
            for id in ids:
                if self.pause:
                    time.sleep(self.pause)
                yield id
        finally:
            self.open -= 1


@contextmanager
def running(app):
    """The address of an app that is served as `python serve.py` serves it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def until(condition):
    """Whether it becomes true, in a few seconds."""
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def client(app, **headers):
    """An HTTP client without a socket."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)


def post(app, path, body, **headers):
    """(status, JSON or the events) of one request."""
    async def once():
        async with client(app, **headers) as http:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await http.post(f"/v1/{path}", content=content)
            return answer.status_code, said(answer), answer
    status, found, _ = asyncio.run(once())
    return status, found


def said(answer):
    if "event-stream" not in answer.headers["content-type"]:
        return answer.json()
    return events(answer.text)


def events(text):
    """The events in a stream: dictionaries, and comments and [DONE] as texts."""
    found = []
    for block in filter(None, text.split("\n\n")):
        *names, data = block.split("\n")
        data = data.removeprefix("data: ")
        found.append(json.loads(data) if data.startswith("{") else data)
        if names:
            assert names == [f"event: {found[-1]['type']}"]
    return found

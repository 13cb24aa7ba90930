"""A service: `python serve.py` answers on http://127.0.0.1:8000/v1 as OpenAI's API does, with the small model in nano/
or with `--model`.

    POST /v1/responses    POST /v1/chat/completions    POST /v1/completions    GET /v1/models    GET /health

One thread owns the engine, because there is one model; the others wait in turn. The event loop owns the connections.

    request -> read, checked -> Queue -> thread: pieces -> asyncio.Queue -> Form: events -> client

How a body becomes a request, and how pieces become events, is in serving/. Here is what a service needs besides: a
queue that has an end, clients that leave, errors in OpenAI's form, and who may ask at all.
"""

if __name__ == "__main__":
    import program

    program.begin()

import asyncio
import hmac
import json
import logging
import math
import socket
import sys
import threading
from collections import OrderedDict, deque
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

import models
import program
from checkpoint import CheckpointError, expect
from conversation import LocalEngine
from remote import EngineError
from serving import chat, completions, responses
from serving.request import Refused
from serving.turn import End, Gone, answer, check, complete, fits

WAITING = 64  # requests that wait for the engine; the next is told to come again
AGAIN = 5  # seconds after which
LARGEST, MOST, DEEPEST = 8 * 2**20, 300_000, 200  # of a body: bytes, values, levels of nesting
SILENCE = 10  # seconds after which a client hears that it is not forgotten
IDLE = 60  # seconds without a request after which the thread ends
KEPT = 64 * 2**20  # bytes of earlier responses, for previous_response_id
LOCAL = ("localhost", "127.0.0.1", "::1")
MISTAKE = "an error in the server; its log has it"
EXPECTED = (ValueError, OSError, MemoryError, Gone)  # what may happen, and is no mistake in this program


# ---- The thread that owns the engine --------------------------------------------------------------------------------

class Queue:
    """Jobs in turn, done by one thread, which ends when there is nothing to do for a while. (The kernels have threads
    of their own behind it. To begin these anew for each job would take time.) abort: a function that ends what an
    engine elsewhere is doing (RemoteEngine has it); one of this machine asks a job by itself."""

    def __init__(self, abort=lambda: None):
        self.jobs, self.changed, self.thread, self.job, self.abort = deque(), threading.Condition(), None, None, abort

    def add(self, job):
        with self.changed:
            if len(self.jobs) >= WAITING:
                raise Refused(f"{WAITING} requests are waiting already; try again later", 429, "rate_limit_exceeded")
            if self.thread is None:
                thread = threading.Thread(target=self._work, name="engine", daemon=True)
                thread.start()  # if the system gives none, the next request tries again
                self.thread = thread
            self.jobs.append(job)
            self.changed.notify()

    def leave(self, job):
        """Its client has left, or has its answer."""
        job.leave()
        with self.changed:
            if job is self.job:
                self.abort()
            elif job in self.jobs:
                self.jobs.remove(job)

    def _work(self):
        while True:
            with self.changed:
                self.job = None
                if not self.changed.wait_for(lambda: self.jobs, IDLE):
                    self.thread = None
                    return
                self.job = self.jobs.popleft()
            self.job.run()


class Job:
    """What one client waits for. pieces: a function from `gone`, an Event, to Pieces and an End."""

    def __init__(self, pieces):
        self.pieces, self.gone = pieces, threading.Event()
        self.queue, self.loop = asyncio.Queue(), asyncio.get_running_loop()

    def run(self):
        """In the engine's thread."""
        try:
            with closing(self.pieces(self.gone)) as pieces:
                for piece in pieces:
                    if self.gone.is_set():
                        return
                    self._put(piece)
        except EXPECTED as error:
            self._put(error)
        except BaseException:  # a mistake in this program: the log has it, and the next client gets its answer
            logging.getLogger("uvicorn.error").exception("while answering")
            self._put(Refused(MISTAKE, 500, "server_error"))

    def _put(self, item):
        with suppress(RuntimeError):  # the loop is closed: the program ends
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)

    def leave(self):
        self.gone.set()
        self.queue.put_nowait(Gone())

    async def follow(self):
        """Yields pieces, the last an End, and None in between if nothing comes for a while. Raises what went wrong, or
        Gone."""
        piece = None
        while not isinstance(piece, End):
            try:
                piece = await asyncio.wait_for(self.queue.get(), SILENCE)
            except asyncio.TimeoutError:
                piece = None
            except asyncio.CancelledError:  # the program ends, and its patience too
                raise Refused("the service has ended", 503, "server_error") from None
            if isinstance(piece, Exception):
                raise piece
            yield piece


# ---- Answers --------------------------------------------------------------------------------------------------------

class Service:
    """The endpoints. builtin: the tools that may run here, {"python" or "browser": a function that makes one}."""

    def __init__(self, engine, tokenizer, name, builtin):
        self.engine, self.tokenizer, self.name, self.builtin = engine, tokenizer, name, builtin
        self.temperature = getattr(engine, "temperature", 1.0)
        self.queue = Queue(getattr(engine, "abort", lambda: None))
        self.kept, self.size = OrderedDict(), 0  # of earlier responses: {id: items, as JSON}, and its size

    async def models(self, request):
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "gpt-oss",
                "max_model_len": self.engine.context}
        if (name := request.path_params.get("name")) is None:
            return in_json({"object": "list", "data": [card]})
        if name != self.name:
            raise Refused(f"model: expected {self.name}, found {name[:200]!r}", 404, "model_not_found")
        return in_json(card)

    async def health(self, request):
        return in_json({"status": "ok"})

    async def responses(self, request):
        return await self._answer(request, responses, lambda body: responses.read(body, self._items))

    async def chat(self, request):
        return await self._answer(request, chat, chat.read)

    async def completions(self, request):
        return await self._answer(request, completions, lambda body: completions.read(body, self.tokenizer))

    async def _answer(self, request, api, read):
        asked = await run_in_threadpool(self._read, await body_of(request), read, api)
        make = complete if api is completions else partial(answer, builtin=self.builtin)
        job = Job(lambda gone: make(asked, self.engine, self.tokenizer, gone=gone))
        form = api.Form(asked, self.name)
        self.queue.add(job)
        if asked.stream:
            return Stream(self, job, form)
        async with leaving(request.receive, partial(self.queue.leave, job)):
            async for piece in job.follow():
                if piece is not None:
                    list(form.feed(piece))
        self.keep(form)
        return in_json(form.whole())

    def _read(self, data, read, api):
        """The Request, if it can be answered. Not in the event loop: a long prompt takes its time."""
        asked = read(parsed(data))
        asked.sampling.setdefault("temperature", self.temperature)
        asked.builtin &= self.builtin.keys()
        if api is completions:
            fits(len(asked.history), self.engine)
        else:
            check(asked, self.engine, self.tokenizer)
        return asked

    # ---- Earlier responses

    def keep(self, form):
        """What previous_response_id may name. The oldest are forgotten when they take too much room."""
        if not isinstance(form, responses.Form) or not form.response["store"]:
            return
        items = json.dumps([*form.body["input"], *form.items])
        self.kept[form.response["id"]] = items
        self.size += len(items)
        while self.size > KEPT:
            self.size -= len(self.kept.popitem(last=False)[1])

    def _items(self, id):
        items = self.kept.get(id)
        return items and json.loads(items)


class Stream(Response):
    """Server-sent events, as they come about."""

    def __init__(self, service, job, form):
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.service, self.job, self.form = service, job, form

    async def __call__(self, scope, receive, send):
        async with leaving(receive, partial(self.service.queue.leave, self.job)):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for text in self._texts():
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _texts(self):
        form = self.form
        for event in form.begin():
            yield form.text(event)
        try:
            async for piece in self.job.follow():
                if piece is None:
                    yield form.waiting()
                    continue
                events = list(form.feed(piece))
                if isinstance(piece, End):
                    self.service.keep(form)  # before the client hears of it
                for event in events:
                    yield form.text(event)
        except Gone:
            return
        except Exception as error:  # the status is sent: only an event can say so
            if not isinstance(error, EXPECTED):
                logging.getLogger("uvicorn.error").exception("while answering")
            for event in form.failed(failure(error)[0]):
                yield form.text(event)
            return
        if form.last:
            yield form.last


@asynccontextmanager
async def leaving(receive, leave):
    """Calls `leave` when the client leaves, at once, or else when the answer is at its end."""
    async def wait():
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    waiting = asyncio.create_task(wait())
    try:
        yield
    finally:
        waiting.cancel()
        leave()


# ---- Requests, and errors -------------------------------------------------------------------------------------------

async def body_of(request):
    """The bytes of a request, if they are not too many."""
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > LARGEST:
                raise Refused(f"body: expected at most {LARGEST} bytes, found more", 413)
    except ClientDisconnect:
        raise Gone from None
    return bytes(data)


def parsed(data):
    """The JSON object in a body, in UTF-8. Nothing in it is so deep or so large that it could not be written again."""
    def finite(text):
        expect(math.isfinite(number := float(text)), ValueError, "body", "finite numbers", text)
        return number

    try:
        body = json.loads(data.decode("utf-8-sig"), parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: expected JSON, found {str(error)[:200]}") from None
    expect(isinstance(body, dict), ValueError, "body", "a JSON object", "other JSON")
    values, count = [body], 0
    for _ in range(DEEPEST):
        values = [inner for value in values if isinstance(value, dict | list)
                  for inner in (value.values() if isinstance(value, dict) else value)]
        count += len(values)
        expect(count <= MOST, ValueError, "body", f"at most {MOST} values", "more")
    expect(not values, ValueError, "body", f"at most {DEEPEST} levels of nesting", "more")
    return body


def failure(error):
    """(message, status, code) of an exception."""
    if isinstance(error, Gone):
        return "the client has left", 499, None  # nobody hears it
    if isinstance(error, CheckpointError):  # the weights were changed while they were in use
        return str(error), 500, "server_error"
    if isinstance(error, ValueError):
        return str(error)[:500], getattr(error, "status", 400), getattr(error, "code", None)
    if isinstance(error, EngineError):
        return str(error), 502, "server_error"
    if isinstance(error, OSError | MemoryError):
        found = getattr(error, "strerror", None) or "too little memory"
        return f"this machine: expected room for the request, found {found}", 503, "server_error"
    if isinstance(error, HTTPException):
        return error.detail, error.status_code, None
    return MISTAKE, 500, "server_error"


def in_json(value, status=200, headers=None):
    """An answer. In ASCII: half a surrogate pair, which JSON can hold, has no other form."""
    return Response(json.dumps(value), status, headers, "application/json")


async def refusal(request, error):
    """An exception in OpenAI's form: what is before the colon is the field that it is about."""
    message, status, code = failure(error)
    field, colon, _ = message.partition(": expected")
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    said = {"message": message, "type": kind, "param": field if colon else None, "code": code}
    return in_json({"error": said}, status, {"Retry-After": str(AGAIN)} if status == 429 else None)


class Guard:
    """Who may ask: those with the key, if there is one, and no web page.

    A page in this machine's browser can send requests here, too. It can do so openly, and then the browser says where
    it comes from (Origin). Or its name leads here all of a sudden (DNS rebinding), and then the browser says the wrong
    host. hosts: by which names this service is called; None: by any."""

    def __init__(self, app, key, hosts, origins):
        self.app, self.key, self.hosts, self.origins = app, key, hosts, origins

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and (said := self._refused(scope)):
            await (await refusal(None, said))(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refused(self, scope):
        headers = dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if self.hosts is not None:
            with suppress(ValueError):
                host = urlsplit(f"//{host}").hostname
            if host not in self.hosts:
                return Refused(f"Host: expected {' or '.join(self.hosts)}, found {str(host)[:200]!r}", 403)
        if origin and origin not in self.origins and "*" not in self.origins:
            return Refused(f"Origin: expected no web page (--cors allows one), found {origin[:200]!r}", 403)
        if self.key and scope["path"] != "/health":
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self.key.encode()):
                return Refused("expected the API key of this service as a bearer token, found "
                               f"{'another' if given else 'none'}", 401, "invalid_api_key")
        return None


def app(engine, tokenizer, *, model_name="gpt-oss", api_key=None, builtin=None, hosts=None, origins=()):
    """The ASGI application for an engine, one of this machine or another. api_key: what clients must send as a bearer
    token. builtin, hosts: see Service and Guard. origins: web pages that may ask, as http://localhost:3000, or "*"."""
    service = Service(engine, tokenizer, model_name, builtin or {})
    routes = [Route("/health", service.health), Route("/v1/models", service.models),
              Route("/v1/models/{name:path}", service.models),
              Route("/v1/responses", service.responses, methods=["POST"]),
              Route("/v1/chat/completions", service.chat, methods=["POST"]),
              Route("/v1/completions", service.completions, methods=["POST"])]
    middleware = [Middleware(Guard, key=api_key, hosts=hosts, origins=origins)]
    if origins:  # outside: it answers the questions that a browser asks beforehand, which come without a key
        allowed = {"allow_origins": origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, **allowed))
    handlers = dict.fromkeys((*EXPECTED, HTTPException, Exception), refusal)
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


# ---- The command ----------------------------------------------------------------------------------------------------

def parse_arguments(argv):
    parser = program.parser("serve.py", "Serve a gpt-oss model as OpenAI's API does.")
    add = parser.add_argument
    add("--model", metavar="DIR", default=str(models.NANO), help="a directory with a checkpoint, or a name on Hugging "
        "Face like openai/gpt-oss-20b (default: the small model in nano/)")
    add("--adapter", metavar="DIR", help="a LoRA adapter for the model, as PEFT saves it")
    add("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000)
    add("--api-key", metavar="KEY", help="what clients must send as a bearer token (default: anything will do)")
    add("--caches", metavar="N", type=int, default=4, help="prompts whose keys and values are kept (default: 4)")
    add("--prompt-cache", metavar="DIR", help="keep those of long prompts there too, for the next start")
    add("--cors", metavar="ORIGIN", action="append", default=[], help="a web page that may ask, as "
        "http://localhost:3000, or *")
    add("--python", action="store_true", help="whoever asks may have the model run Python here, without a question")
    add("--browser", metavar="SOURCE", help="and search and read: a directory of texts, the address of a SearXNG "
        'server, or "web"')
    add("--yes", action="store_true", help="download the model without asking")
    args = parser.parse_args(argv)
    if args.caches < 1 or not 0 <= args.port < 65536:
        parser.error("expected --caches of at least 1 and --port from 0 to 65535, found others")
    return args


def note(text):
    print(text, file=sys.stderr, flush=True)


def tools(args):
    """The built-in tools that the operator allows: {name: a function that makes one, for a tokenizer}."""
    found = {}
    if args.python:
        from tools.python import Python
        found["python"] = lambda tokenizer: Python()
        with closing(Python()) as python:
            if not python.offline:
                note("python: this system cannot take the network away from what the model runs.")
    if args.browser:
        from tools.browser import Browser, source_of
        found["browser"] = partial(Browser, source_of(args.browser))
        found["browser"](None)  # what is wrong with its packages is said now
    return found


def listen(host, port):
    """The socket of the service. Whether it can be had is said before anything else is done."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"{host}:{port}: {error.strerror or error}") from None


@program.ends("serve.py")
def main(argv=None):
    import uvicorn

    args = parse_arguments(argv)
    with listen(args.host, args.port) as sock:
        builtin = tools(args)
        agree = models.ask if not args.yes else lambda said: True
        model, tokenizer, directory = models.load(args.model, note, agree, args.adapter)
        engine = LocalEngine(model, args.caches, args.prompt_cache, note)
        hosts = LOCAL if args.host in LOCAL else None
        name = models.label(args.model, directory, args.adapter)
        service = app(engine, tokenizer, model_name=name, api_key=args.api_key, hosts=hosts, origins=args.cors,
                      builtin={tool: partial(make, tokenizer) for tool, make in builtin.items()})
        if hosts is None and not args.api_key:
            note(f"{args.host}: other machines can reach this, and there is no --api-key.")
        host = f"[{args.host}]" if sock.family == socket.AF_INET6 else args.host
        note(f"http://{host}:{sock.getsockname()[1]}/v1   {name}, context {engine.context:,} tokens")
        config = uvicorn.Config(service, log_level="warning", timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    sys.exit(main())

"""An engine on another machine: vLLM's server or llama.cpp's, which gets token ids and gives token ids.

    ids -> one POST -> events, each with an id or a few -> ids

What a message is stays our business. A server's chat endpoint would render the messages and read the reply itself. Its
completions endpoint only continues what it gets, so both sides see the very ids that a model on this machine would see.

    vLLM 0.10.2 or later   POST /v1/completions, return_token_ids     vllm/entrypoints/openai/completion/protocol.py
    llama.cpp's server     POST /completion, return_tokens            tools/server/README.md

docs/16-more-than-one-machine.md says how to start either.
"""

import json
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import chain
from numbers import Integral
from socket import SHUT_RDWR
from urllib.parse import quote, urlsplit

from checkpoint import expect
from gptoss import check_sampling

CONNECT = 10  # seconds until a server takes the connection
MOST = 10_000_000  # an answer, or one event, has fewer bytes: a server may send without end
SILENCE = 300  # seconds between two signs of life: it says nothing while it reads a long prompt
KINDS = {"http": HTTPConnection, "https": HTTPSConnection}


class EngineError(OSError):
    """A server that cannot be reached, refuses or breaks off, in one sentence. What came until then is good."""


class RemoteEngine:
    """An engine (see conversation.py) at `url`, as http://host:8000, with or without /v1. `model`: one that the server
    lists; None: the first. `api_key`: what the server wants as a bearer token. `stop`: the ids that end a reply.

    The server is asked at once what it has. Raises EngineError, or ValueError for what is no address and no key."""

    processes_logits, socket = False, None  # socket: of the request that is under way
    progress = staticmethod(lambda: None)  # called when a request begins; what it raises ends that (as in LocalEngine)

    def __init__(self, url, model=None, *, api_key=None, stop):
        try:
            parts = urlsplit(url)
            self.host, self.port = parts.hostname, parts.port
        except ValueError:  # a port that is no number
            self.host = None
        expect(self.host and parts.scheme in KINDS and not parts.username, ValueError, "the server's address",
               "one like http://host:8000", str(url).rpartition("@")[2])  # not the password that may be before it
        self.connection, self.path = KINDS[parts.scheme], parts.path.rstrip("/").removesuffix("/v1")
        self.address, self.stop, self.key = f"{parts.scheme}://{parts.netloc}{self.path}", frozenset(stop), api_key
        fits = not api_key or api_key.isascii() and api_key.isprintable()
        expect(fits, ValueError, "the API key", "printable ASCII characters", "others")  # not shown: it is a secret
        with self._shape("a list of models"):
            cards = self._ask("GET", "/v1/models")["data"]
            names = ", ".join(card["id"] for card in cards)
            card = next((card for card in cards if model in (None, card["id"], *card.get("aliases", ()))), None)
        expect(card, EngineError, f"{self.address}: model", f"one of {self._text(names)}", repr(model))
        self.model, self.llama = card["id"], card.get("owned_by") == "llamacpp"
        if self.llama:
            self._ask("POST", "/tokenize", {"model": self.model, "content": ""})  # the list of models needs no key here
            with self._shape("the context"):
                props = self._ask("GET", f"/props?model={quote(self.model)}")
                self.context = int(props["default_generation_settings"]["n_ctx"])
        else:  # an adapter has the context of its model
            self.context = next((card["max_model_len"] for card in (card, *cards) if card.get("max_model_len")), None)
            expect(self.context, EngineError, self.address, "vLLM's server or llama.cpp's",
                   f"one of {self._text(card.get('owned_by'))}")
        right = type(self.context) is int and self.context > 0
        expect(right, EngineError, f"{self.address}: context", "a number of tokens", self._text(repr(self.context)))

    def generate(self, tokens, *, max_tokens=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, stop=None,
                 logits_processor=None):
        """As gptoss.generate. Raises ValueError at once for bad arguments, and EngineError while ids come. Closing this
        generator closes the connection, at which either server stops."""
        if logits_processor is not None:
            raise ValueError("a server chooses tokens itself; what steers the choice needs a model on this machine")
        temperature, top_k, top_p, min_p = check_sampling(temperature, top_k, top_p, min_p, max_tokens)
        ids = list(tokens)
        expect(ids and all(isinstance(id, Integral) and id >= 0 for id in ids), ValueError, "tokens",
               "ids, at least one", ids)
        room = self.context - len(ids)
        expect(room > 0, ValueError, "tokens", f"fewer than {self.context}, the context", str(len(ids)))
        stop, room = self.stop if stop is None else frozenset(stop), min(room, max_tokens or room)
        body = {"model": self.model, "prompt": [int(id) for id in ids], "stream": True, "temperature": temperature,
                "top_k": top_k, "top_p": top_p, "min_p": min_p} | ({} if seed is None else {"seed": int(seed)})
        if self.llama:  # its own samplers, all on by default, and another order of them would give other answers
            return self._stream("/completion", self._llama_ids, stop, body | {
                "n_predict": room, "return_tokens": True, "cache_prompt": True,
                "samplers": ["temperature", "top_k", "top_p", "min_p"]})
        # vLLM would stop at the model's own eos ids too. ignore_eos leaves those that are asked for.
        return self._stream("/v1/completions", self._vllm_ids, stop, body | {
            "max_tokens": room, "return_token_ids": True, "stop_token_ids": sorted(stop), "ignore_eos": True,
            "skip_special_tokens": False})

    def abort(self):
        """Ends the request that is under way; from another thread, while this one waits for the server."""
        with suppress(AttributeError, OSError):  # there is none, or it has ended
            self.socket.shutdown(SHUT_RDWR)

    # ---- Events, and the ids in them --------------------------------------------------------------------------------

    def _stream(self, path, ids_of, stop, body):
        room = body.get("n_predict") or body["max_tokens"]
        with self._answer("POST", path, body) as answer, self._shape("events with token ids"):
            for id in chain.from_iterable(ids_of(self._events(answer))):
                expect(type(id) is int and id >= 0, EngineError, self.address, "token ids", self._text(repr(id)))
                yield id
                room -= 1
                if id in stop or not room:  # a server may do more than it was asked for
                    return

    def _events(self, answer):
        """The JSON objects of an event stream. Whoever reads them leaves at the last one, so the end is an error."""
        for line in iter(lambda: answer.readline(MOST), b""):
            self._bounded(line)
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":  # other lines are comments, or empty
                event = self._json(line[5:])
                expect(not event.get("error"), EngineError, self.address, "a reply", self._message(event))
                yield event
        expect(False, EngineError, self.address, "a reply with an end", "one that breaks off")

    def _vllm_ids(self, events):
        for event in events:
            for choice in event["choices"]:  # an event that is about usage has none
                ids, reason, stopped_by = choice.get("token_ids"), choice["finish_reason"], choice.get("stop_reason")
                expect(ids is not None, EngineError, self.address, "token ids (vLLM has them since 0.10.2)", "none")
                yield ids
                if reason == "stop" and isinstance(stopped_by, int) and ids[-1:] != [stopped_by]:
                    yield [stopped_by]
                if reason:
                    expect(reason in ("stop", "length"), EngineError, self.address, "a reply", self._text(reason))
                    return

    def _llama_ids(self, events):
        """llama.cpp's server sends text, and of the tokens with it only the last. Until a character has all its bytes
        it sends nothing. tokens_predicted tells how many tokens it kept to itself."""
        count = 0
        for event in events:
            ids, missing = event["tokens"], event["tokens_predicted"] - count - len(event["tokens"])
            if event["stop"]:  # at the limit, half a character may be missing
                expect(not missing or event["stop_type"] == "limit", EngineError, self.address, "all token ids",
                       f"{missing} too few")
                return
            if missing > 0:
                ids = self._restored(event["content"], ids, missing)
            count += len(ids)
            yield ids

    def _restored(self, text, ids, missing):
        """The ids of `text`, of which only the last are known: what the server makes of the text, if that fits. One
        missing id is certain, as text and neighbour leave no choice. Of several, it is the usual spelling."""
        found = self._ask("POST", "/tokenize", {"model": self.model, "content": text})["tokens"]
        expect(found[missing:] == ids, EngineError, self.address, "all token ids",
               f"{missing} too few, for {self._text(repr(text))}")
        return found

    # ---- Requests, and what goes wrong with them --------------------------------------------------------------------

    @contextmanager
    def _answer(self, method, path, body=None):
        """The server's answer, open for reading. When this is left, in whatever way, the connection is closed."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        patience = CONNECT
        try:
            with closing(self.connection(self.host, self.port, timeout=CONNECT)) as connection:
                connection.connect()
                patience = SILENCE
                self.socket = connection.sock
                self.socket.settimeout(SILENCE)
                self.progress()  # from here on `abort` ends it; before, it could only be noticed
                connection.request(method, self.path + path, body and json.dumps(body), headers)
                with connection.getresponse() as answer:
                    status = answer.status
                    expect(status not in (401, 403), EngineError, self.address, "an API key that it accepts",
                           "another" if self.key else "none")
                    if status != 200:
                        said = answer.read(100_000).decode(errors="replace")
                        with suppress(ValueError, RecursionError):
                            said = json.loads(said)
                        expect(False, EngineError, self.address, "an answer", f"{status}: {self._message(said)}")
                    yield answer
        except EngineError:
            raise
        except TimeoutError:
            raise EngineError(f"{self.address}: expected an answer within {patience} s, found none") from None
        except (OSError, HTTPException, UnicodeError) as error:
            found = self._text(getattr(error, "strerror", None) or error)
            raise EngineError(f"{self.address}: expected an answer, found {found or type(error).__name__}") from None

    def _ask(self, method, path, body=None):
        with self._answer(method, path, body) as answer:
            return self._json(self._bounded(answer.read(MOST)))

    def _bounded(self, data):
        expect(len(data) < MOST, EngineError, self.address, f"fewer than {MOST:,} bytes at once", "more")
        return data

    def _json(self, data):
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = data.decode(errors="replace")
        expect(isinstance(found, dict), EngineError, self.address, "a JSON object", self._text(found))
        return found

    def _message(self, data):
        """What a server says of an error: {"error": {"message": text}}, {"error": text} or {"message": text}."""
        for key in ("error", "message"):
            data = data.get(key, data) if isinstance(data, dict) else data
        return self._text(data)

    def _text(self, text):
        """A server's text, fit for a sentence: short, on one line, and without the key, should it repeat that."""
        text = str(text).replace(self.key, "[key]") if self.key else str(text)
        return "".join(c for c in " ".join(text.split()) if c.isprintable())[:200]

    @contextmanager
    def _shape(self, expected):
        """What a server sends may be JSON of any shape."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            found = self._text(repr(error))
            raise EngineError(f"{self.address}: expected {expected}, found others ({found})") from None

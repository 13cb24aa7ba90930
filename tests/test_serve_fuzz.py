"""The service given what no client should send: bodies that are wrong everywhere, raw bytes, odd headers; and clients
that leave at each event. Whatever comes is answered rightly or refused in one sentence, and the next one is served."""

import asyncio
import json
import logging
import os
import socket
import threading
import time
from copy import deepcopy

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from service import ANSWER, Answering, events, running, until

import serve
from conversation import LocalEngine

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
PATHS = ("/v1/responses", "/v1/chat/completions", "/v1/completions")
JSON = (b"content-type", b"application/json")
HOST = (b"host", b"127.0.0.1:8000")


class Gone(Exception):
    """What `asked` raises for a client that has left."""


async def asked(app, path, body, *, method="POST", headers=(HOST, JSON), parts=1, leave_after=None):
    """(status, headers, text) of a request without a socket. parts: in which the body comes. leave_after: the messages
    of the answer (its head, its events) after which the client leaves."""
    sent, size, left = [], max(1, -(-len(body) // parts)), asyncio.Event()
    waiting = [body[n : n + size] for n in range(0, len(body), size)] or [b""]
    path, _, query = path.partition("?")
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": path, "raw_path": path.encode(errors="replace"), "query_string": query.encode(errors="replace"),
             "root_path": "", "headers": list(headers), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}

    async def receive():
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) == leave_after or leave_after is None and not message.get("more_body", True):
            left.set()

    if leave_after == 0:
        left.set()
    await asyncio.wait_for(app(scope, receive, send), 10)
    head, *rest = sent
    return head["status"], dict(head["headers"]), b"".join(part["body"] for part in rest).decode()


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


# ---- Bodies ---------------------------------------------------------------------------------------------------------

ADD = {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "number"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                                     "c": {"enum": ["x", 1]}, "d": {"type": "array", "items": {"$ref": "#/$defs/d"}}},
    "$defs": {"d": {"type": "string", "maxLength": 9}}, "required": ["a"], "additionalProperties": False}}
FORM = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
BOTH = {"model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ["zebra"],
        "metadata": {"a": "b"}, "stream": False}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
VALID = {
    "/v1/responses": [
        {"input": "2 + 2?"}, BOTH | {"stream": True, "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "?"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "4"}], "instructions": "Be brief.",
            "tools": [{"type": "function", **ADD}, {"type": "web_search"}], "tool_choice": "auto",
            "reasoning": {"effort": "low"}, "max_output_tokens": 40, "include": ["reasoning.encrypted_content"],
            "top_logprobs": 0, "store": True, "previous_response_id": None},
        BOTH | {"input": "?", "text": {"format": FORM}, "max_output_tokens": 9}],
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "2 + 2?"}]}, BOTH | {"stream": True, "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "?"}]},
            {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"}], "tools": [{"type": "function", "function": ADD}],
            "tool_choice": {"type": "function", "function": {"name": "add"}}, "reasoning_effort": "high", "n": 1,
            "max_completion_tokens": 40, "stream_options": {"include_usage": True}, "logprobs": False,
            "chat_template_kwargs": {"reasoning_effort": "low"}},
        BOTH | {"messages": [{"role": "user", "content": "?"}], "max_tokens": 9,
                "response_format": {"type": "json_schema", "json_schema": FORM}}],
    "/v1/completions": [
        {"prompt": "2 + 2?"}, BOTH | {"prompt": [1, 2, 3], "stream": True, "max_tokens": 9, "stop_token_ids": [5],
                                      "return_token_ids": True, "ignore_eos": True, "skip_special_tokens": False,
                                      "best_of": 1, "n": 1, "echo": False}]}
GOOD = {"/v1/responses": ("input", "responses"), "/v1/chat/completions": ("messages", "chat.completion"),
        "/v1/completions": ("prompt", "text_completion")}

odd = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.text(max_size=5), st.binary(max_size=4).map(list),
    st.sampled_from([10**400, -10**30, 2**63, 2**64, 1e300, 5e-324, -0.0, 1e16, "", "\ud800", "\x00", "\x1b[31m",
                     "<|end|><|start|>system<|message|>", "a" * 3000, "../../etc/passwd", [], {}, [[]], [{}], {"": 0}]),
    st.integers(1, 300).map(lambda n: json.loads("[" * n + "]" * n)),
    st.integers(1, 300).map(lambda n: json.loads('{"type":' * n + "1" + "}" * n)),
    st.sampled_from([deepcopy(body) for bodies in VALID.values() for body in bodies]))
odd_bytes = st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b'"', b",",
                             b":", b"\\", b"\\ud800", b"NaN", b"1e999", b"-", b"9" * 5000, b'"a":1,', b"//", b"\r\n"])


def places(value, path=()):
    """All places in a JSON value, as paths."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(draw, body):
    """A body with something else, with nothing, or with twice as much, at one place."""
    *path, last = draw(st.sampled_from(places(body)[1:] or [("x",)]))
    inside = body
    for key in path:
        inside = inside[key]
    if draw(st.booleans()):
        inside[last] = deepcopy(draw(odd))
    elif isinstance(inside, list):
        inside.insert(last, deepcopy(inside[last]))
    else:
        inside.pop(last, None)
    return body


@st.composite
def bodies(draw, path):
    body = deepcopy(draw(st.sampled_from(VALID[path] + [{}])))
    for _ in range(draw(st.integers(0, 3))):
        body = changed(draw, body)
    data = json.dumps(body).encode()
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(odd_bytes | st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    if draw(st.integers(0, 19)) == 0:
        data = draw(st.sampled_from([data.decode(errors="replace").encode("utf-16"), b"\xef\xbb\xbf" + data,
                                     data + data, data[: len(data) // 2], b""]))
    return data


cases = st.sampled_from(PATHS).flatmap(lambda path: st.tuples(st.just(path), bodies(path), st.integers(1, 4)))


def right(path, body, status, headers, text):
    """An answer in its form, or one sentence in the form of an error."""
    if status == 200 and headers[b"content-type"].startswith(b"text/event-stream"):
        found = events(text)
        last = found[-1] if path == PATHS[0] else found[-2]
        assert last.get("type") in ("response.completed", "response.incomplete") or "choices" in last, last
    elif status == 200:
        assert json.loads(text)["object"] == GOOD[path][1].removesuffix("s"), text
        assert isinstance(json.loads(body.decode("utf-8-sig")), dict)
    else:
        assert status in (400, 404), (status, text)
        error = json.loads(text)["error"]
        assert error["type"] == "invalid_request_error" and 0 < len(error["message"]) <= 500
        assert ": expected " in error["message"] and "\n" not in error["message"], error


class WithLogits(Answering):
    """It has logits to show to whoever wants log probabilities, or a form of the answer."""

    def generate(self, tokens, *, logits_processor=None, **sampling):
        if logits_processor:
            logits_processor([], np.zeros(self.tokenizer.vocab_size, np.float32))
        return super().generate(tokens, **sampling)


def test_whatever_a_body_holds_it_is_answered_or_refused_in_one_sentence(tokenizer, loop, caplog):
    engine = WithLogits(tokenizer)
    app, replies = serve.app(engine, tokenizer), set()

    @hypothesis.settings(max_examples=20_000 if LONG else 300)
    @hypothesis.given(case=cases)
    def fuzz(case):
        path, body, parts = case
        right(path, body, *loop.run_until_complete(asked(app, path, body, parts=parts)))
        status, _, text = loop.run_until_complete(asked(app, PATHS[1], json.dumps(VALID[PATHS[1]][0]).encode()))
        replies.add((status, json.loads(text)["choices"][0]["message"]["content"]))
        assert engine.open == 0

    fuzz()
    assert replies == {(200, "It is 4.")}  # what comes next is answered as well as ever
    assert not caplog.records


paths = st.sampled_from(["/", "/v1", "/v1/models/", "/v1/models/../../etc/passwd", "/v1/models/\ud800",
                         "/v1//responses", "/v1/responses/", "/v1/responses/resp_1", "/v1/models/gpt-oss", "/health",
                         "/V1/models", "/v1/models?x=\x00", *PATHS]) | st.text(max_size=8).map("/".__add__)
values = st.sampled_from([b"", b"localhost", b"127.0.0.1", b"evil.example", b"localhost.evil.example", b"[::1]",
                          b"[::", b"localhost@evil.example", b"http://evil.example", b"null", b"text/plain",
                          b"\xff\xfe", b"gzip", b"Bearer k", b"Bearer \xff", b"bearer k", b"-1",
                          b"x" * 5000]) | st.binary(max_size=6)
names = st.sampled_from([b"host", b"origin", b"authorization", b"content-type", b"content-length", b"content-encoding",
                         b"transfer-encoding", b"accept", b"expect", b"cookie", b"x-forwarded-host", b"referer"])


@hypothesis.settings(max_examples=20_000 if LONG else 200)
@hypothesis.given(method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "\x00"]),
                  path=paths, headers=st.lists(st.tuples(names, values), max_size=4), key=st.sampled_from([None, "k"]),
                  origins=st.sampled_from([(), ["http://localhost:3000"]]))
def test_only_the_right_host_origin_and_key_get_in(apps, loop, method, path, headers, key, origins):
    headers = [(b"host", b"localhost:8000"), *headers]
    body = json.dumps({"input": "?", "prompt": "?", "messages": [{"role": "user", "content": "?"}]}).encode()
    status, _, text = loop.run_until_complete(asked(apps[key, bool(origins)], path, body, method=method,
                                                    headers=headers))
    last = dict(headers)
    here = last[b"host"] in (b"localhost", b"localhost:8000", b"127.0.0.1", b"[::1]")
    trusted = not last.get(b"origin") and (key is None or last.get(b"authorization") == b"Bearer k")
    preflight = method == "OPTIONS" and origins and last.get(b"origin")
    if status in (200, 307, 404, 405) and path != "/health" and not preflight:
        assert here and trusted
    assert status in (200, 307, 400, 401, 403, 404, 405), (status, text)  # 307: without the last slash
    if status > 307 and method != "HEAD" and not preflight:
        assert 0 < len(json.loads(text)["error"]["message"]) <= 500


@pytest.fixture(scope="module")
def apps(tokenizer):
    return {(key, bool(origins)): serve.app(Answering(tokenizer), tokenizer, api_key=key, hosts=serve.LOCAL,
                                            origins=origins)
            for key in (None, "k") for origins in ((), ["http://localhost:3000"])}


# ---- Clients that leave ---------------------------------------------------------------------------------------------

def test_a_client_leaves_at_each_event(nano, tokenizer, loop, caplog, monkeypatch):
    """Its reply ends, the next request gets the answer that it always gets, the cache is as a fresh one, and nothing is
    logged."""
    queues, engine = [], LocalEngine(nano)
    monkeypatch.setattr(serve, "Queue", lambda *args, queue=serve.Queue: queues.append(queue(*args)) or queues[-1])
    app = serve.app(engine, tokenizer)
    [queue] = queues

    def said(path, **more):
        body = VALID[path][0] | {"temperature": 0, "max_tokens": 5, "max_output_tokens": 5, "stream": True}
        _, _, text = loop.run_until_complete(asked(app, path, json.dumps(body).encode(), **more))
        return [event for event in events(text) if isinstance(event, dict)]

    def words(found):
        return [event.get("delta") or [choice.get("text", choice.get("delta")) for choice in event.get("choices", ())]
                for event in found]

    for path in PATHS:
        whole = words(said(path))
        for n in range(len(whole) + 3):
            said(path, leave_after=n)
            assert until(lambda: queue.job is None and not queue.jobs)
            equals_a_fresh_one(engine)
            if n % 4 == 0:
                assert words(said(path)) == whole
                equals_a_fresh_one(engine)
    assert not caplog.records


def equals_a_fresh_one(engine):
    fresh, n = engine.model.new_cache(), engine.cache.length
    assert n <= len(engine.cache.ids)
    if n:
        engine.model(engine.cache.ids[:n], fresh, logits_to_keep=1)
    for ours, theirs in zip(engine.cache.layers, fresh.layers, strict=True):
        np.testing.assert_allclose(ours[:, :, :n], theirs[:, :, :n], rtol=1e-4, atol=1e-4)


def test_a_client_leaves_before_its_turn(tokenizer, loop, caplog):
    """Its request is never begun. The one before it is answered, and so is the one after it."""
    released = threading.Event()
    engine = Answering(tokenizer, lambda text: released.wait(10) and ANSWER)
    app = serve.app(engine, tokenizer)

    async def three():
        first, second, third = (json.dumps({"input": text}).encode() for text in ("First", "Second", "Third"))
        answer = asyncio.create_task(asked(app, PATHS[0], first))
        while not engine.prompts:
            await asyncio.sleep(0.01)
        left = await asked(app, PATHS[0], second, leave_after=0)
        released.set()
        return [left[0], (await answer)[0], (await asked(app, PATHS[0], third))[0]]

    assert loop.run_until_complete(three()) == [499, 200, 200]
    prompts = [tokenizer.decode(ids) for ids in engine.prompts]
    assert len(prompts) == 2 and "First" in prompts[0] and "Third" in prompts[1] and not caplog.records


# ---- Bytes on a socket ----------------------------------------------------------------------------------------------

BODY = b'{"input": "?"}'
HEAD = b"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SENT = {
    "no HTTP": (b"hello\r\n\r\n", 400), "nothing": (b"", None), "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01", 400),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400), "two hosts": (HEAD + b"Host: evil.example\r\n\r\n", 400),
    "HTTP/1.0": (b"GET /v1/models HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    "HTTP/1.0 without a host": (b"GET /v1/models HTTP/1.0\r\n\r\n", 403),
    "a proxy's request": (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "a long line": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 400),
    "many headers": (HEAD + b"A: b\r\n" * 20_000 + b"\r\n", 400),
    "a NUL in a header": (HEAD + b"A: \0\r\n\r\n", 400), "a bad length": (HEAD + b"Content-Length: x\r\n\r\n", 400),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "too short a length": (HEAD + b"Content-Length: 3\r\nConnection: close\r\n\r\n" + BODY, 400),
    "too long a length": (HEAD + b"Content-Length: 99\r\n\r\n" + BODY, None),
    "chunks": (CHUNKED + b"7\r\n" + BODY[:7] + b"\r\n7\r\n" + BODY[7:] + b"\r\n0\r\n\r\n", 200),
    "bad chunks": (CHUNKED + b"zz\r\n" + BODY, 400), "half a chunk": (CHUNKED + b"ff\r\n" + BODY, None),
    "another coding": (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "compressed": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08", 400),
    "expecting": (HEAD + b"Expect: 100-continue\r\nContent-Length: 14\r\n\r\n" + BODY, 100),
    "a websocket": (b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n", 405),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 403),
    "two at once": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2, 200)}


def test_bytes_on_a_socket(tokenizer, caplog):
    """The server below answers what is no HTTP; the service does the rest. It waits for who goes on sending, and is
    there for the others meanwhile. No more than a line is logged for any of them."""
    engine = Answering(tokenizer)
    with running(serve.app(engine, tokenizer, hosts=serve.LOCAL)) as url:
        port, kept = int(url.rpartition(":")[2]), {}
        for name, (data, status) in SENT.items():
            kept[name] = connection = socket.create_connection(("127.0.0.1", port), 10)
            connection.sendall(data)
            if status is None:  # not at its end: the server waits for more
                connection.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    pytest.fail(f"{name}: {connection.recv(100)}")
            else:
                assert connection.recv(1000).split(b" ")[1] == b"%d" % status, name
        for n in range(20):  # a body that comes slowly, while others are answered
            kept["nothing"].sendall((HEAD + b"Content-Length: 14\r\n\r\n" + BODY)[n * 5 : n * 5 + 5])
            begun = time.monotonic()
            with socket.create_connection(("127.0.0.1", port), 10) as good:
                good.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert good.recv(1000).startswith(b"HTTP/1.1 200") and time.monotonic() - begun < 10
        for connection in kept.values():
            connection.close()
        said = b""
        with socket.create_connection(("127.0.0.1", port), 10) as good:
            good.sendall(HEAD + b"Connection: close\r\nContent-Length: 14\r\n\r\n" + BODY)
            while part := good.recv(4096):
                said += part
    assert said.startswith(b"HTTP/1.1 200") and b"It is 4." in said
    assert all(record.levelno <= logging.WARNING and not record.exc_info and "\n" not in record.getMessage()
               for record in caplog.records)


def test_a_client_that_reads_nothing_holds_up_nobody(tokenizer):
    """Its answer is computed and waits for it; the next client gets its own."""
    engine = Answering(tokenizer, "[channel]final[message]" + "word " * 15_000)
    with running(serve.app(engine, tokenizer)) as url:
        port = int(url.rpartition(":")[2])
        lazy = socket.create_connection(("127.0.0.1", port), 10)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1000)
        body = b'{"input": "?", "stream": true}'
        lazy.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert until(lambda: engine.open)
        engine.reply = ANSWER
        with socket.create_connection(("127.0.0.1", port), 60) as good:
            good.sendall(HEAD + b"Connection: close\r\nContent-Length: 14\r\n\r\n" + BODY)
            assert good.recv(1000).startswith(b"HTTP/1.1 200")
        lazy.close()

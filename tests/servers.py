"""For tests: servers that send what vLLM 0.32 and llama.cpp's server of 2026-10-06 were seen to send."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from remote import RemoteEngine

MODELS, COMPLETIONS = "/v1/models", "/v1/completions"
CUT, WAIT = "cut", "wait"  # in a stream: close the connection, without an end; say nothing until the client is gone
STOP = (200002, 200012, 199999)


class Server(ThreadingHTTPServer):
    """Says what it is told to, and keeps what it was asked. `answers`: for a path a status and JSON, text, or a list of
    events that are streamed; or a function from the request's JSON to these."""
    daemon_threads = True

    def __init__(self, answers, key=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.key, self.asked, self.gone = answers, key, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def engine(self, model=None, **options):
        return RemoteEngine(self.url, model, **{"stop": STOP} | options)

    def body(self):
        """What the last request said."""
        return self.asked[-1][2]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body, path = json.loads(text) if text else None, self.path
        self.server.asked.append((path, self.headers, body))
        free = (MODELS, "/props?model=m") if "/completion" in self.server.answers else ()  # without a key, in llama.cpp
        if self.server.key and path not in free and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.say(401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}})
        answer = self.server.answers.get(path, (404, {"detail": "Not Found"}))  # as FastAPI says it
        status, said = answer(body) if callable(answer) else answer
        return self.stream(said) if isinstance(said, list) else self.say(status, said)

    do_POST = do_GET

    def say(self, status, said):
        data = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for event in events:
            if event == CUT:
                return
            if event == WAIT:
                self.connection.settimeout(30)
                with suppress(ConnectionError):  # closed with something unread, which is as good as closed
                    if self.connection.recv(1) != b"":
                        return
                self.server.gone.set()
                return
            data = (event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n").encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


# vLLM: CompletionStreamResponse, ErrorResponse and ModelCard in vllm/entrypoints/openai/completion/protocol.py and
# vllm/entrypoints/serve/engine/protocol.py.

def vllm_card(name, **fields):
    return {"id": name, "object": "model", "created": 1795806495, "owned_by": "vllm", "root": name, "parent": None,
            "max_model_len": 1000, "permission": []} | fields


def vllm_event(ids, reason=None, stopped_by=None):
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": reason, "stop_reason": stopped_by,
              "prompt_token_ids": None, "token_ids": ids}
    return {"id": "cmpl-be07", "object": "text_completion", "created": 1795806495, "model": "m", "choices": [choice]}


def vllm(events, *names, **fields):
    cards = [vllm_card(name, **fields) for name in names or ["m"]]
    return {"/v1/models": (200, {"object": "list", "data": cards}), "/v1/completions": (200, events)}


END = "data: [DONE]\n\n"
SIMPLE = [vllm_event([5]), vllm_event([6], "length"), END]


# llama.cpp: get_res_model_info in tools/server/server-context.cpp, to_json_non_oaicompat in server-task.cpp.

def llama_event(count, ids, text="", **fields):
    return {"index": 0, "content": text, "tokens": ids, "stop": False, "id_slot": -1, "tokens_predicted": count,
            "tokens_evaluated": 96} | fields


def llama_end(count, kind):
    return llama_event(count, [], stop=True, stop_type=kind, stopping_word="", truncated=False, prompt="...",
                       generation_settings={"seed": 1}, timings={"cache_n": 0})


def llama(events, tokens=(), name="m"):
    card = {"id": name, "aliases": [name, "other"], "tags": [], "object": "model", "created": 1795806533,
            "owned_by": "llamacpp", "meta": {"vocab_type": 2, "n_vocab": 992, "n_ctx": 1000, "n_ctx_train": 4096}}
    return {"/v1/models": (200, {"models": [], "object": "list", "data": [card]}),
            f"/props?model={name}": (200, {"default_generation_settings": {"n_ctx": 1000, "params": {}}}),
            "/tokenize": (200, {"tokens": list(tokens)}), "/completion": (200, events)}

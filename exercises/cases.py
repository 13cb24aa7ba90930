"""What check.py tries the functions on: small random inputs of which no two sizes are equal, edges, and what the first
layer of the small model works on. The same in every run."""

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import regex

import gptoss
import harmony
import tokenizer as tokenizers
from checkpoint import E2M1, MXFP4, dequantize, float32_to_bf16
from exercises import solutions

NANO = Path(gptoss.__file__).parent / "nano"
QUESTION = "What is 12 + 30?"
temporary = tempfile.TemporaryDirectory(prefix="exercises-")  # goes when the run ends


def of(name):
    """[(what the input is, the arguments)] for an exercise. The first is the smallest."""
    return [(what, args) for what, *args in globals()[f"{name}_cases"](np.random.default_rng(0))]


def normal(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)


# ---- The small model ----------------------------------------------------------------------------------------------

@cache
def tokenizer():
    return tokenizers.load(NANO)


@cache
def vocabulary():
    """(the pattern that cuts text, {bytes: id}) of the small model."""
    split = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"][0]
    plain = range(tokenizer().vocab_size - len(tokenizer().special_tokens))
    return split["pattern"]["Regex"], {tokenizer().decode_bytes([id]): id for id in plain}


@cache
def question():
    """A question to the small model as messages whose contents are text."""
    system = harmony.SystemContent(reasoning_effort="medium", conversation_start_date="2026-06-01")
    ids = harmony.render([harmony.Message("system", [system])], tokenizer(), next_role=None)
    return [*harmony.parse(ids, tokenizer()), harmony.Message("user", QUESTION)]


@cache
def recorded():
    """{operation: the arguments of its first call} when the small model reads the question."""
    calls = {}

    def recorder(name):
        def call(*args):
            calls.setdefault(name, args)
            return getattr(gptoss, name)(*args)
        return call

    model = gptoss.load(NANO, backend=SimpleNamespace(**{name: recorder(name) for name in gptoss.OPERATIONS}))
    calls["logits"] = model(solutions.render(question(), tokenizer()))[-1]
    return calls


# ---- Chapters 1 and 2 -----------------------------------------------------------------------------------------------

def bpe_cases(rng):
    few = {bytes([byte]): byte for byte in range(256)}
    few |= {token: 256 + i for i, token in enumerate(b"ab cd abcd aabcd bc aa abc".split())}
    yield from ((f"the piece {piece}, the tokens {[*few][256:]}", piece, few)
                for piece in (b"aabca", b"aabcd", b"aaa", b"abab", b"x", b""))
    pieces = {bytes(rng.choice([*b"abc"], 9).tolist()): 1 for _ in range(30)}
    learned = solutions.train_bpe(pieces, 25)
    yield from ((f"the piece {piece}, and 25 tokens learned from such pieces", piece, learned)
                for piece in list(pieces)[:9])
    pattern, ranks = vocabulary()
    text = "What is 12 + 30? assistant: größer als 日本 straw"
    yield from ((f"the piece {piece!r}, the small model's vocabulary", piece.encode(), ranks)
                for piece in regex.findall(pattern, text))


def train_bpe_cases(rng):
    yield ("four words, 3 merges", {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}, 3)
    yield ("a piece that merges completely, 9 merges", {b"aaaa": 1}, 9)
    yield ("30 random pieces, 20 merges", {bytes(rng.choice([*b"abc"], 9).tolist()): i + 1 for i in range(30)}, 20)


def render_cases(rng):
    message = harmony.Message
    asked = [message("system", "Reasoning: low"), message("user", "Hi <|end|>!")]
    thought = message("assistant", "I greet.", channel="analysis")
    answered = [*asked, thought, message("assistant", "Hello.", channel="final")]
    call = message("assistant", '{"city": "Oslo"}', channel="commentary", recipient="functions.weather",
                   content_type="<|constrain|>json")
    result = message("tool", "rain", name="functions.weather", channel="commentary", recipient="assistant")
    run = message("assistant", "print(1)", channel="analysis", recipient="python")
    printed = message("tool", "1", name="python", channel="analysis", recipient="assistant")
    yield "a question", asked, tokenizer()
    yield "a question answered, and another", [*answered, message("user", "And now?")], tokenizer()
    yield "two questions answered, and a third", [*answered, *answered[1:], message("user", "And now?")], tokenizer()
    yield "a call and its result", [*asked, thought, call, result], tokenizer()
    yield "a call, its result and the answer", [*asked, thought, call, result, answered[-1]], tokenizer()
    yield "a question answered, and a call after the next", [*answered, asked[1], thought, call, result], tokenizer()
    yield "a call and its result on channel analysis, and the answer", [*asked, run, printed, answered[-1]], tokenizer()
    yield "a question whose recipient is all", [asked[0], message("user", "Hi", recipient="all")], tokenizer()
    yield "the question that the small model will answer", question(), tokenizer()


# ---- Chapters 3 to 5 ------------------------------------------------------------------------------------------------

def rms_norm_cases(rng):
    yield "3 tokens of 10 random numbers", normal(rng, 3, 10, scale=0.1), normal(rng, 10), 1e-3
    yield "7 tokens of 4 random numbers", normal(rng, 7, 4, scale=5), normal(rng, 4), 1e-5
    yield "the small model's first norm", *recorded()["rms_norm"]


def softmax_cases(rng):
    yield "3 rows of 5 random numbers", normal(rng, 3, 5)
    yield "2 x 3 rows of 4 large numbers", normal(rng, 2, 3, 4, scale=1000)
    x = normal(rng, 3, 7)
    x[0, 2:] = -np.inf
    yield "3 rows of 7, of which some are -inf", x


def attention_cases(rng):
    def inputs(T, S, H, G, D, window):
        return (normal(rng, T, H, D), normal(rng, G, S, D), normal(rng, G, S, D), float32_to_bf16(normal(rng, H)),
                window)

    yield "T 3, S 7, H 10, G 2, D 8, window 4, sinks bf16", *inputs(3, 7, 10, 2, 8, 4)
    q, k, v, sinks, window = inputs(1, 9, 6, 3, 4, 5)
    k, v = float32_to_bf16(k), float32_to_bf16(v)
    yield "T 1, S 9, H 6, G 3, D 4, window 5, keys, values and sinks bf16", q, k, v, sinks, window
    yield "T 4, S 5, H 6, G 3, D 4, window 6, which is more than S; sinks bf16", *inputs(4, 5, 6, 3, 4, 6)
    yield "the first attention of the small model", *recorded()["attention"]


def rope_frequencies_cases(rng):
    nano = gptoss.read_config(NANO)[0]
    published = dict(factor=32.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=4096, truncate=False)
    big = replace(nano, head_dim=64, rope_theta=150000.0, rope_scaling=published)
    once = 4096 / (2 * np.pi)  # a pair that turns so often is pair 0
    yield "gpt-oss", big
    yield "gpt-oss without rope_scaling", replace(big, rope_scaling=None)
    for what, change in (("truncate true", dict(truncate=True)), ("factor 0.5", dict(factor=0.5)),
                         ("beta_fast 10,000, beta_slow 1e-8", dict(beta_fast=1e4, beta_slow=1e-8)),
                         (f"beta_fast and beta_slow both {once:.2f}", dict(beta_fast=once, beta_slow=once))):
        yield f"gpt-oss with {what}", replace(big, rope_scaling=published | change)
    yield "the small model", nano


def rotate_cases(rng):
    angles = normal(rng, 3, 1, 4, scale=3)
    yield "T 3, 5 heads, D 8", normal(rng, 3, 5, 8), np.cos(angles) * 1.3, np.sin(angles) * 1.3
    yield "the first keys of the small model", *recorded()["rotate"]


# ---- Chapters 6 and 7 -----------------------------------------------------------------------------------------------

def packed(rng, *shape):
    return MXFP4(rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), np.uint8),
                 rng.integers(121, 126, (*shape[:-1], shape[-1] // 32), np.uint8))


def route_cases(rng):
    yield "4 tokens, 7 experts, 3 chosen", normal(rng, 4, 7), 3
    yield "2 tokens, 5 experts, 3 chosen, some equal", np.array([[1, 2, 2, 0, 2], [3, 1, 0, 1, 1]], np.float32), 3
    yield "the first router of the small model", *recorded()["route"]


def swiglu_cases(rng):
    yield "3 tokens, F 5, limit 1.5", normal(rng, 3, 10, scale=3), 1.5
    yield "2 tokens, F 7, limit 7", normal(rng, 2, 14, scale=8), 7.0


def experts_cases(rng):
    layer = SimpleNamespace(gate_up=packed(rng, 5, 64, 96), gate_up_bias=float32_to_bf16(normal(rng, 5, 64)),
                            down=packed(rng, 5, 96, 32), down_bias=float32_to_bf16(normal(rng, 5, 96)))
    chosen, weights = solutions.route(normal(rng, 4, 5), 3)
    yield "4 tokens, N 96, F 32, 3 of 5 experts", normal(rng, 4, 96), chosen, weights, layer, 1.5
    yield "the first experts of the small model", *recorded()["experts"]


def dequantize_cases(rng):
    yield "a matrix of 3 rows, 64 numbers each", packed(rng, 3, 64)
    gate_up = recorded()["experts"][3].gate_up
    yield "the small model's first gate_up, of all experts", gate_up
    yield "scale bytes 0, 1, 200 and 255", MXFP4(packed(rng, 1, 128).blocks, np.array([[0, 1, 200, 255]], np.uint8))


def quantize_cases(rng):
    yield "3 rows of 64 random numbers", normal(rng, 3, 64)
    middles = (E2M1[:7] + E2M1[1:8]) / 2
    ties = np.resize(np.concatenate([middles, -middles, [6]]), (2, 32)).astype(np.float32)
    yield "numbers in the middle of two values", ties
    some = normal(rng, 2, 96, scale=1e-3)
    some[0, 32:64] = 0
    some[1, 5] = 100
    yield "a block of zeros, and one with an outlier", some
    blocks, scales = recorded()["experts"][3].down
    yield "weights of the small model, which have a form in MXFP4", dequantize(MXFP4(blocks[0], scales[0]))
    below = normal(rng, 1, 32, scale=1e5)
    below[0, 3] = 2**20 - 2**-4  # the next float32 is 2^20
    yield "a largest number just below a power of two", below
    yield "numbers of at most 6 * 2^-128", np.ldexp(np.resize(E2M1, (1, 32)), -128)


# ---- Chapters 8 and 9 -----------------------------------------------------------------------------------------------

def filter_logits_cases(rng):
    few, many = normal(rng, 5, scale=2), normal(rng, 40, scale=2)
    steps, far = np.array([3, 2, 2, 1, 0], np.float32), np.array([0, -40, -np.inf, -80], np.float32)
    for what, *settings in (("temperature 0.5", 0.5, 0, 1.0, 0.0), ("top_k 3", 1.0, 3, 1.0, 0.0),
                            ("top_p 0.8", 1.0, 0, 0.8, 0.0), ("min_p 0.2", 1.0, 0, 1.0, 0.2),
                            ("top_k 9, more than there are", 1.0, 9, 1.0, 0.0)):
        yield f"5 logits, {what}", few, *settings
    yield "logits far apart, all switched off", far, 1.0, 0, 1.0, 0.0
    yield "5 logits, the second and third equal, top_k 2", steps, 1.0, 2, 1.0, 0.0
    yield "5 logits, temperature 2, min_p 0.3", steps, 2.0, 0, 1.0, 0.3
    yield "32 equal logits, top_p 0.5", np.ones(32, np.float32), 1.0, 0, 0.5, 0.0
    yield "40 logits, temperature 0.7, top_k 12, top_p 0.8, min_p 0.05", many, 0.7, 12, 0.8, 0.05
    yield "40 logits, temperature 2, top_k 9, top_p 0.6", many, 2.0, 9, 0.6, 0.0
    yield "logits of the small model, top_p 0.95", recorded()["logits"], 1.0, 0, 0.95, 0.0


def read_safetensors_cases(rng):
    tensors = {"b": ("BF16", float32_to_bf16(normal(rng, 3, 5))), "f": ("F32", normal(rng, 2, 3, 4)),
               "u": ("U8", rng.integers(0, 256, (7,), np.uint8))}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    file = Path(temporary.name) / "small.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    yield "a file with three small tensors and metadata", str(file)
    yield "nano/model.safetensors", str(NANO / "model.safetensors")

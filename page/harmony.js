"use strict";

/* A question as the token ids that the model was trained on, the ids as messages again, and a whole run as a trace.

       [start] system [message] You are ChatGPT ... Reasoning: high ... [end]
       [start] user [message] What is 23 * 41? [end]
       [start] assistant        here the prompt ends, and the model goes on:
                         [channel] analysis [message] ... [end]
       [start] assistant [channel] final [message] ... [return]

   What is between brackets is a special token, one id. The twin of harmony.py, as far as a question needs it. */

const EFFORTS = ["low", "medium", "high"];
const STOPS = ["<|end|>", "<|return|>", "<|call|>"]; // of a message

/* The ids that ask a question. date: as "2026-11-24". */
function render(question, effort, date, tokenizer) {
  const { special } = tokenizer;
  const message = (role, content) => [
    special["<|start|>"], ...tokenizer.encode(role), special["<|message|>"], ...tokenizer.encode(content),
    special["<|end|>"]];
  const system = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n" +
    `Current date: ${date}\n\nReasoning: ${effort}\n\n` +
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.";
  return [...message("system", system), ...message("user", question), special["<|start|>"],
    ...tokenizer.encode("assistant")];
}

/* Today, where the reader is. */
function today() {
  const now = new Date(), two = (n) => String(n).padStart(2, "0");
  return `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
}

/* Says of token after token to which message it belongs: `feed` fills in message, role, channel and part. What a header
   says counts for all tokens of its message, also for those before it. */
class Structure {
  constructor() {
    this.message = -1;
    this.begin();
  }

  begin() {
    [this.message, this.part, this.tokens, this.header] = [this.message + 1, "header", [], ""];
  }

  feed(token) {
    const name = token.special ? token.text : null;
    if (name === "<|start|>" && this.tokens.length) this.begin();
    this.tokens.push(token);
    token.message = this.message;
    token.part = STOPS.includes(name) ? "stop" : this.part;
    if (this.part === "header" && name !== "<|start|>") {
      this.header += token.text;
      const channel = this.header.match(/<\|channel\|>\s*([^\s<]+)/), role = this.header.match(/^\s*([\w.]+)/);
      for (const other of this.tokens) [other.role, other.channel] = [role && role[1], channel && channel[1]];
    } else {
      [token.role, token.channel] = [this.tokens[0].role ?? null, this.tokens[0].channel ?? null];
    }
    if (name === "<|message|>") this.part = "content";
  }
}

/* What a trace says of its model. */
function describeModel(config) {
  return { name: config.name, layers: config.num_hidden_layers, heads: config.num_attention_heads,
    kv_heads: config.num_key_value_heads, experts: config.num_local_experts, chosen: config.num_experts_per_tok,
    window: config.sliding_window, layer_types: config.layer_types, vocab_size: config.vocab_size };
}

/* The changes of a model (model.js) in words. */
function describeChanges(changes) {
  const words = [];
  if (changes.noSink) words.push("sink off");
  if (changes.window) words.push(`window ${changes.window}`);
  if (changes.bestOnly) words.push("best expert only");
  if (changes.expertOff) words.push(`layer ${changes.expertOff[0]} expert ${changes.expertOff[1]} off`);
  if (changes.noYarn) words.push("no YaRN");
  if (changes.softmaxAll) words.push("softmax over all experts");
  return words;
}

/* A run, step by step: yields the same trace again and again, longer by a token each time. */
function* think(model, tokenizer, { question, effort, date = today(), maxTokens = 600 }) {
  const trace = { format: 1, question, effort, model: describeModel(model.config),
    changes: describeChanges(model.changes), tokens: [] };
  const text = (id) => tokenizer.decode([id]);
  const named = (best) => best.map(([id, p]) => [id, text(id), p]);
  const structure = new Structure();
  const finish = (token) => { // what the generator has filled in meanwhile
    token.best &&= named(token.best);
    for (const layer of token.layers ?? []) layer.lens = named(layer.lens);
  };
  for (const token of generate(model, render(question, effort, date, tokenizer), maxTokens)) {
    if (trace.tokens.length) finish(trace.tokens.at(-1));
    token.text = text(token.id);
    token.special = tokenizer.names.has(token.id);
    token.surprise = token.probability === null ? null : -Math.log(token.probability);
    structure.feed(token);
    trace.tokens.push(token);
    yield trace;
  }
  if (trace.tokens.at(-1).layers) finish(trace.tokens.at(-1));
}

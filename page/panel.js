"use strict";

/* What the model made of one token: the panel beside the text (on a phone below it). */

/* What each thing is, in a plain sentence: behind the small question marks. */
const WHY = {
  came: "Before each token the model gives every token of its vocabulary a probability. These were the likeliest here.",
  next: "After reading this token, the model thought that one of these would come.",
  layers: "A token goes through the layers in turn. Each adds to its residual stream, a list of numbers, first what " +
    "its heads bring from earlier tokens, then what its experts make of it.",
  heads: "A head copies something from earlier tokens to this one. Shown is the token that it looks at most; choose " +
    "a head to see on the text all that it looks at.",
  looks: "These are the largest shares of this head's attention. All shares and the sink's add up to 100%.",
  sink: "Violet is the sink: a place to look at when there is nothing to see. It brings nothing to the token.",
  experts: "Each layer has several small networks, the experts. A router chooses a few for each token, and their " +
    "results are added by these weights.",
  size: "The size of the residual stream, before and after the layer: the root mean square of its numbers.",
  lens: "If the model had to stop after this layer, it would expect these tokens next. It is called the logit lens.",
};

/* The panel. go(t): the reader wants token t. look(layer, head): the reader wants this head. */
class Panel {
  constructor(element, go, look) {
    [this.element, this.go, this.look] = [element, go, look];
    this.open = new Set(); // the question marks that are open
    this.folded = true; // on a phone, until a token is touched
  }

  show(trace, t, layer, head) {
    const focus = document.activeElement?.closest?.("#panel [data-key]")?.dataset.key;
    Object.assign(this, { trace, t, layer, head });
    const token = trace.tokens[t], before = trace.tokens[t - 1];
    this.element.hidden = false;
    this.element.classList.toggle("folded", this.folded);
    this.element.replaceChildren(
      this.top(token),
      h("div", { class: "inside" },
        this.came(token, before),
        token.layers ? this.layers(token) :
          h("p", { class: "dim" }, "This is the last token. The model does not read it."),
        token.best && h("section", {}, this.title("It expected next", "next"),
          this.bars(token.best, trace.tokens[t + 1]?.id))));
    if (focus) this.element.querySelector(`[data-key="${focus}"]`)?.focus({ preventScroll: true });
  }

  /* A heading with a question mark that opens its sentence. */
  title(words, name) {
    const isOpen = this.open.has(name);
    const sentence = h("p", { class: "why", id: `why-${name}`, hidden: !isOpen }, WHY[name]);
    const button = h("button", {
      type: "button", class: "mark", "data-key": `why-${name}`, "aria-expanded": String(isOpen), title: WHY[name],
      "aria-controls": `why-${name}`, "aria-label": `What is this: ${words}`,
      onclick: () => {
        this.open[this.open.has(name) ? "delete" : "add"](name);
        sentence.hidden = !this.open.has(name);
        button.setAttribute("aria-expanded", String(!sentence.hidden));
      },
    }, "?");
    return [h("h3", {}, words, button), sentence];
  }

  top(token) {
    const step = (words, sign, to) => h("button", {
      type: "button", "data-key": words, "aria-label": words, title: words, onclick: () => this.go(to),
      disabled: to < 0 || to >= this.trace.tokens.length }, sign);
    const part = { header: "header", content: "", stop: "end" }[token.part];
    return h("div", { class: "top" },
      h("span", { class: `which${token.special ? " special" : ""}` }, visible(token.text)),
      h("span", { class: "where" }, `${this.t + 1} of ${this.trace.tokens.length}, id ${token.id}`, h("br"),
        [token.role, token.channel, part].filter(Boolean).join(", ")),
      h("span", { class: "steps" }, step("previous token", "←", this.t - 1), step("next token", "→", this.t + 1),
        h("button", { type: "button", class: "fold", "data-key": "fold", "aria-expanded": String(!this.folded),
          "aria-label": "details", onclick: () => this.fold() }, this.folded ? "▴" : "▾")));
  }

  fold() {
    this.folded = !this.folded;
    this.show(this.trace, this.t, this.layer, this.head);
  }

  came(token, before) {
    if (!before) return h("p", { class: "dim" }, "With this token everything begins. Nothing came before it.");
    const p = token.probability;
    const sure = p > 0.99 ? "The model was sure of it." : p > 0.8 ? "The model was fairly sure." :
      p > 0.5 ? "The model was not sure." : "The model wavered.";
    const words = token.given ? "It was given. The model would have expected:" : sure;
    const listed = before.best.some(([id]) => id === token.id);
    const rows = listed ? before.best : [...before.best, [token.id, token.text, p]];
    return h("section", {}, this.title(words, "came"), this.bars(rows, token.id));
  }

  /* Tokens and their probabilities as bars; the one that came is marked. */
  bars(best, came) {
    return h("ul", { class: "bars" }, best.map(([id, text, p]) =>
      h("li", { class: id === came ? "came" : null, style: `--p: ${p.toFixed(4)}` },
        h("span", { class: "word" }, visible(text)), this.bar(p),
        id === came && h("span", { class: "hidden" }, "it came"))));
  }

  /* A bar and its figure. (How long it is says --p of the row.) */
  bar(p) {
    return [h("span", { class: "bar" }), h("span", { class: "number" }, percent(p))];
  }

  layers(token) {
    const largest = Math.max(...token.layers.map((layer) => layer.size));
    return h("section", { class: "layers" }, this.title("Layer by layer", "layers"),
      h("p", { class: "legend" }, ["heads", "sink", "experts", "size", "lens"].map((name) => this.mark(name))),
      ["heads", "sink", "experts", "size", "lens"].map((name) => this.sentence(name)),
      token.layers.map((layer, i) => h("div", { class: "layer", role: "group", "aria-label": `layer ${i}` },
        h("h4", {}, `layer ${i}`,
          h("span", { class: "dim" }, this.trace.model.layer_types[i] === "sliding_attention" ?
            ` sees the last ${this.windowOf()}` : " sees all")),
        this.size(layer, largest),
        this.heads(layer, i),
        i === this.layer && this.looks(layer.heads[this.head]),
        this.experts(layer),
        h("p", { class: "lens" }, layer.lens.map(([, text, p]) =>
          h("span", { style: `--p: ${Math.max(0.6, Math.sqrt(p)).toFixed(2)}` }, visible(text),
            h("small", {}, percent(p))))))));
  }

  windowOf() {
    const change = this.trace.changes.find((change) => change.startsWith("window"));
    return change ? change.split(" ")[1] : this.trace.model.window;
  }

  mark(name) {
    const isOpen = this.open.has(name);
    return h("button", { type: "button", class: `key of-${name}`, "data-key": `why-${name}`,
      "aria-expanded": String(isOpen), "aria-controls": `why-${name}`, title: WHY[name],
      onclick: () => {
        this.open[isOpen ? "delete" : "add"](name);
        this.show(this.trace, this.t, this.layer, this.head);
      } }, name);
  }

  sentence(name) {
    return h("p", { class: "why", id: `why-${name}`, hidden: !this.open.has(name) }, WHY[name]);
  }

  size(layer, largest) {
    return h("p", { class: "size", style: `--p: ${(layer.size / largest).toFixed(3)}` },
      h("span", { class: "hidden" }, "size of the stream "),
      `${layer.size_before.toPrecision(2)} → ${layer.size.toPrecision(2)}`, h("span", { class: "bar" }));
  }

  heads(layer, i) {
    const narrow = layer.heads.length > 8;
    return h("div", { class: `heads${narrow ? " narrow" : ""}` }, layer.heads.map((head, n) => {
      const s = head.weights.reduce((best, p, s) => p > head.weights[best] ? s : best, 0);
      const text = visible(this.trace.tokens[head.first + s].text), p = percent(head.weights[s]);
      return h("button", {
        type: "button", "data-key": `head-${i}-${n}`, "aria-pressed": String(i === this.layer && n === this.head),
        "aria-label": `layer ${i} head ${n}: ${text} ${p}, sink ${percent(head.sink)}`,
        title: `head ${n}: ${text} ${p}, sink ${percent(head.sink)}`,
        style: `--sink: ${head.sink.toFixed(3)}; --top: ${Number(head.weights[s]).toFixed(3)}`,
        onclick: () => this.look(i, n),
      }, narrow ? null : [h("b", {}, text), h("small", {}, p)]);
    }));
  }

  experts(layer) {
    const weights = new Map(layer.experts);
    return h("p", { class: "experts" },
      h("span", { class: "strip", "aria-hidden": "true" }, Array.from({ length: this.trace.model.experts }, (_, e) =>
        h("i", { style: `--p: ${(weights.get(e) ?? 0).toFixed(3)}`, title: `expert ${e}`,
          class: weights.has(e) ? "on" : null }))),
      h("span", {}, h("span", { class: "hidden" }, "experts "),
        layer.experts.map(([e, weight]) => [h("b", {}, String(e)), ` ${percent(weight)}  `])));
  }

  /* Where the chosen head looks: the most seen tokens, in words, for those who cannot see shades. */
  looks(seen) {
    const order = Array.from(seen.weights.keys()).sort((a, b) => seen.weights[b] - seen.weights[a]).slice(0, 4);
    return h("section", { class: "looks" }, this.title(`Head ${this.head} looks at`, "looks"),
      h("ul", { class: "bars" },
        order.filter((s) => seen.weights[s] >= 0.005).map((s) => {
          const at = seen.first + s, back = this.t - at;
          return h("li", { style: `--p: ${Number(seen.weights[s]).toFixed(4)}` },
            h("button", { type: "button", class: "word", onclick: () => this.go(at) },
              visible(this.trace.tokens[at].text)),
            this.bar(seen.weights[s]), h("span", { class: "back" }, back ? `${back} back` : "itself"));
        }),
        h("li", { class: "violet", style: `--p: ${seen.sink.toFixed(4)}` }, h("span", { class: "word" }, "the sink"),
          this.bar(seen.sink), h("span", { class: "back" }))));
  }
}

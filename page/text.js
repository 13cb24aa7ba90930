"use strict";

/* The text of a run: its messages, token by token, and what is drawn onto them. */

/* An element: h("p", { class: "x", onclick: f }, "text", element, ...). null and false are left out. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== false));
  return element;
}

/* A probability as a reader wants it: 43%, 0.3%. */
function percent(p) {
  if (p >= 0.9995) return "100%";
  if (p >= 0.995) return `${(100 * p).toFixed(1)}%`;
  return p >= 0.0095 ? `${Math.round(100 * p)}%` : p >= 0.0005 ? `${(100 * p).toFixed(1)}%` : "0%";
}

/* The text of a token where it stands alone: spaces and line ends can be seen, and a special token has no bars. */
function visible(text) {
  const special = text.match(/^<\|(.*)\|>$/);
  return special ? `[${special[1]}]` : text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

let columnCount = 0;

/* A run on the page. choose(t, keep): called when the reader points at token t (null: at none), or keeps it. */
class Column {
  constructor(choose) {
    this.choose = choose;
    this.number = ++columnCount;
    this.spans = [];
    this.title = h("h2");
    this.said = h("p", { class: "said" });
    this.sink = h("span", { class: "sink" });
    this.text = h("div", {
      class: "text", role: "listbox", tabindex: 0, "aria-label": "Tokens; arrow keys go from one to the next",
      onpointerover: (event) => event.pointerType === "mouse" && this.choose(this.tokenOf(event.target), false),
      onpointerleave: (event) => event.pointerType === "mouse" && this.choose(null, false),
      onclick: (event) => this.tokenOf(event.target) !== null && this.choose(this.tokenOf(event.target), true),
      onkeydown: (event) => this.key(event),
    });
    this.element = h("article", { class: "column" }, h("header", {}, this.title, this.sink, this.said), this.text);
  }

  tokenOf(target) {
    return target.dataset.t === undefined ? null : Number(target.dataset.t);
  }

  /* Draws the tokens of the trace that are not drawn yet. */
  catchUp(trace) {
    this.trace = trace;
    while (this.spans.length < trace.tokens.length) this.draw(this.spans.length, trace.tokens[this.spans.length]);
  }

  draw(t, token) {
    if (t === 0 || token.message !== this.trace.tokens[t - 1].message) {
      [this.head, this.body] = [h("div", { class: "head" }), h("div", { class: "body" })];
      this.block = h("div", { role: "group" }, this.head, this.body);
      this.text.append(this.block);
    }
    this.block.classList.add("message", ...[token.role, token.channel].filter(Boolean)); // known once the header is
    this.block.setAttribute("aria-label", [token.role, token.channel].filter(Boolean).join(", "));
    if (token.part === "content" && token.role === "system" && !this.fold) this.addFold();
    const { text } = token, end = token.special ? "" : text.replace(/[^\n]/g, "").length;
    const shown = token.special ? visible(text).slice(1, -1) : text.replaceAll("\n", "↵");
    const unsure = token.given || token.probability === null ? 0 : 1 - token.probability;
    const span = h("span", {
      id: `token-${this.number}-${t}`, "data-t": t, role: "option", "aria-selected": "false",
      "aria-label": visible(text), style: unsure > 0.02 ? `--unsure: ${unsure.toFixed(3)}` : null,
      class: ["token", token.special && "special", token.given && "given", end && "end"].filter(Boolean).join(" "),
    }, shown);
    this.spans.push(span);
    (token.part === "header" || token.text === "<|message|>" ? this.head : this.body).append(span, ...(end ? [h("br")] : []));
  }

  /* The system message is long and always the same: it is folded into a line, until somebody looks into it. */
  addFold() {
    const block = this.block;
    this.fold = h("button", { type: "button", class: "fold-text", onclick: () => {
      block.classList.toggle("folded");
      this.sayFold(this.seen);
    } });
    block.classList.add("folded");
    this.folded = { block, from: this.spans.length };
    this.element.querySelector("header").append(this.fold);
    this.sayFold(null);
  }

  sayFold(seen) {
    const { block, from } = this.folded, shut = block.classList.contains("folded");
    const to = from + block.querySelectorAll(".body .token").length;
    let share = 0; // of the attention that is drawn
    seen?.weights.forEach((p, s) => share += seen.first + s >= from && seen.first + s < to ? p : 0);
    this.fold.setAttribute("aria-expanded", String(!shut));
    this.fold.textContent = `${shut ? "unfold" : "fold"} the system message` +
      (shut && share > 0.005 ? ` (${percent(share)} of the attention)` : "");
  }

  /* Marks token t, and shades what this head looked at when it was read. */
  shade(t, layer, head) {
    const seen = this.trace.tokens[t]?.layers?.[layer]?.heads[head];
    if (this.spans[t]?.closest(".message.folded .body")) this.folded.block.classList.remove("folded");
    this.seen = seen;
    if (this.fold) this.sayFold(seen);
    this.spans.forEach((span, s) => {
      const p = seen && s <= t ? seen.weights[s - seen.first] ?? null : null;
      if (p > 0.005) span.style.setProperty("--seen", Math.sqrt(p).toFixed(3));
      else span.style.removeProperty("--seen");
      span.classList.toggle("far", Boolean(seen) && s < seen.first);
      span.classList.toggle("chosen", s === t);
      span.setAttribute("aria-selected", String(s === t));
    });
    this.sink.hidden = !seen;
    if (seen) {
      this.sink.style.setProperty("--seen", Math.sqrt(seen.sink).toFixed(3));
      this.sink.textContent = `sink ${percent(seen.sink)}`;
    }
    if (t === null) this.text.removeAttribute("aria-activedescendant");
    else this.text.setAttribute("aria-activedescendant", `token-${this.number}-${t}`);
  }

  key(event) {
    const t = this.chosen ?? this.spans.length - 1;
    const to = { ArrowLeft: () => t - 1, ArrowRight: () => t + 1, Home: () => 0, End: () => this.spans.length - 1,
      ArrowUp: () => this.line(t, -1), ArrowDown: () => this.line(t, 1), Enter: () => t, " ": () => t }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.choose(Math.min(Math.max(to(), 0), this.spans.length - 1), true);
  }

  /* The token above or below token t: of the next line in this direction the one that stands nearest. */
  line(t, step) {
    const middle = (s) => {
      const box = this.spans[s].getClientRects()[0] ?? this.spans[s].getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    };
    const [x, y] = middle(t);
    let best = t, nearest = Infinity, row = null;
    for (let s = t + step; s >= 0 && s < this.spans.length; s += step) {
      const [left, top] = middle(s);
      if (Math.abs(top - y) < 8) continue;
      if (row !== null && Math.abs(top - row) > 8) break;
      row = top;
      if (Math.abs(left - x) < nearest) [best, nearest] = [s, Math.abs(left - x)];
    }
    return best;
  }
}

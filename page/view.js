"use strict";

/* The page: what a reader can ask for, the runs, and what of them is shown.

   A run is {question, effort, changes, trace, column, seconds, note}. One is shown, or two side by side; one token of
   one of them is looked at: the one under the mouse, or else the one that was kept by a click, a tap or a key. */

const MOST = 600; // tokens of a reply; what goes on longer has lost itself
const STOPPED = "stopped"; // the note of a run that the reader has cut short
const SLICE = 12; // milliseconds of computing between two looks at what the reader does
const EXAMPLES = ["What is 23 * 41?", "How many r's are in strawberry?", "Which is larger, 9.9 or 9.11?",
  "Spell harmony backwards.", "Sort banana."];
const SWITCHES = [ // name in model.js, label, what it does
  ["noSink", "sink off",
    "The softmax of every head has no sink: it must look at some token, even if there is nothing to see."],
  ["window", "window 8", "Sliding layers see the last 8 tokens, and not the last {W}."],
  ["bestOnly", "best expert only", "Of the experts that are chosen for a token, the best works alone."],
  ["expertOff", "one expert off", "The router cannot choose this expert. The next best takes its place."],
  ["noYarn", "no YaRN", "Positions turn queries and keys as plain RoPE does. The model learned YaRN's slower turns."],
  ["softmaxAll", "softmax over all",
    "The weights are a softmax over all experts, before the choice. They no longer add up to 1."],
];

const $ = (id) => document.getElementById(id);
const state = {
  weights: null, config: null, tokenizer: null, expertChosen: false, // of the model in this page, if there is one
  runs: [], shown: [], // the runs so far; the one or two that are shown
  running: null, stopping: false, waiting: null, // waiting: what to do when the run has stopped
  kept: null, hovered: null, // tokens: {run, t}
  layer: 0, head: 0, headChosen: false, // whose attention is drawn, and whether the reader chose it
};
const panel = new Panel($("panel"), (t) => keep(looked().run, t), (layer, head) => lookWith(layer, head));


// ---- Running --------------------------------------------------------------------------------------------------------

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));

/* Runs the model on a question, in slices, so that the page answers meanwhile. Resolves to the run. */
async function start(question, effort, changes, keepBeside = null) {
  const run = { question, effort, changes, trace: null, seconds: 0, note: "" };
  run.column = new Column((t, kept) => point(run, t, kept));
  state.runs.push(run);
  state.runs.splice(0, state.runs.length - 8);
  [state.running, state.stopping, state.kept, state.hovered] = [run, false, null, null];
  display(keepBeside ? [keepBeside, run] : [run]);
  buttons();
  const steps = think(new Model(state.config, state.weights, changes), state.tokenizer,
    { question, effort, maxTokens: MOST });
  let ended = false;
  while (!ended && !state.stopping) {
    const slow = $("slow").checked, begin = performance.now();
    let writing = false; // a token of the reply, which a reader may want to see come
    while (!ended && !(slow && writing) && performance.now() - begin < SLICE) {
      const step = steps.next();
      ended = step.done;
      if (!ended) [run.trace, writing] = [step.value, !step.value.tokens.at(-1).given];
    }
    run.seconds += (performance.now() - begin) / 1000;
    progress(run);
    await pause(slow && writing ? 20 : 0);
  }
  const written = run.trace.tokens.filter((token) => !token.given).length;
  if (!ended) run.note = STOPPED;
  else if (!state.config.eos_token_id.includes(run.trace.tokens.at(-1).id))
    run.note = `stopped after ${written} tokens`;
  state.running = null;
  finished(run);
  return run;
}

/* What has come since the last slice is drawn; and as long as nobody has chosen a token, the newest is looked at. */
function progress(run) {
  run.column.catchUp(run.trace);
  const t = run.trace.tokens.length - 2;
  if (!state.kept && !state.hovered && t >= 0 && !run.trace.tokens[t + 1].given) look(run, t);
  if (state.following) run.column.spans.at(-1).scrollIntoView({ block: "nearest" });
  heading(run);
}

function finished(run) {
  $("answer").textContent = `${nameOf(run)}: ${answerOf(run) || "no answer"}`; // for those who listen
  heading(run);
  runButtons();
  verdict();
  buttons();
  if (!state.kept) state.kept = { run, t: leastSure(run.trace) };
  firstLook(run.trace);
  refresh();
}

/* Until the reader chooses: the head that copies most, and to be switched off the expert with most to do. (While it is
   switched off it stays the same one: the changed run is of this expert.) */
function firstLook(trace) {
  if (!state.headChosen) [state.layer, state.head] = copyingHead(trace);
  if (!state.config || trace.changes.length || state.expertChosen || $("switch-expertOff").checked) return;
  const work = new Map(); // "layer expert": the sum of its weights
  for (const token of trace.tokens)
    if (!token.given) token.layers?.forEach((layer, i) => layer.experts.forEach(([e, weight]) =>
      work.set(`${i} ${e}`, (work.get(`${i} ${e}`) ?? 0) + weight)));
  const [most] = [...work].sort((a, b) => b[1] - a[1]);
  if (most) [$("off-layer").value, $("off-expert").value] = most[0].split(" ");
}

/* The [layer, head] that looks most at a token like the one that comes next. */
function copyingHead(trace) {
  let best = [0, 0], most = -1;
  for (let layer = 0; layer < trace.model.layers; layer++)
    for (let head = 0; head < trace.model.heads; head++) {
      let sum = 0;
      trace.tokens.forEach((token, t) => {
        const seen = token.layers?.[layer].heads[head], next = trace.tokens[t + 1];
        if (seen && next && !next.given)
          seen.weights.forEach((p, s) => sum += trace.tokens[seen.first + s].id === next.id ? p : 0);
      });
      if (sum > most) [best, most] = [[layer, head], sum];
    }
  return best;
}

/* The written token of which the model was least sure: a good place to look first. */
function leastSure(trace) {
  let best = trace.tokens.length - 1;
  trace.tokens.forEach((token, t) => {
    if (!token.given && token.surprise > trace.tokens[best].surprise) best = t;
  });
  return best;
}

/* Stops what runs, and then does this. */
async function afterwards(action) {
  const mine = state.waiting = {}, cut = state.running;
  state.stopping = true;
  while (state.running) await pause(5);
  if (cut) state.runs = state.runs.filter((run) => run !== cut);
  if (state.waiting === mine) await action(); // else somebody has asked for something else since
}

/* Runs the question as the form has it: intact, and with changes beside it. */
function ask() {
  const question = $("question").value.trim(), effort = document.querySelector("[name=effort]:checked").value;
  if (!question) return;
  history.replaceState(null, "", `#${new URLSearchParams({ question, effort })}`); // such an address asks it again
  afterwards(async () => {
    const mine = state.waiting, changes = changesWanted(), known = find(question, effort, {});
    if (!describeChanges(changes).length) {
      state.runs = state.runs.filter((run) => run !== known); // the same question again takes its place
      await start(question, effort, {});
      return;
    }
    const intact = known ?? await start(question, effort, {});
    if (state.waiting === mine) await start(question, effort, changes, intact);
  });
}

/* A run like this that is there already. (It would be the same again: the likeliest token is not drawn by chance.) */
function find(question, effort, changes) {
  const like = (run) => [run.question, run.effort, ...describeChanges(run.changes)].join("\n");
  return state.runs.find((run) => like(run) === like({ question, effort, changes }) && run.note !== STOPPED);
}

/* The question at low effort and at high effort, side by side. */
function askBoth() {
  const question = $("question").value.trim();
  if (!question) return;
  afterwards(async () => {
    const mine = state.waiting, changes = changesWanted();
    const low = find(question, "low", changes) ?? await start(question, "low", changes);
    if (state.waiting !== mine) return;
    const high = find(question, "high", changes);
    if (high) display([low, high]);
    else await start(question, "high", changes, low);
  });
}

function changesWanted() {
  const changes = {};
  for (const [name] of SWITCHES) if ($(`switch-${name}`).checked) changes[name] = true;
  if (changes.window) changes.window = 8;
  if (changes.expertOff) changes.expertOff = [Number($("off-layer").value), Number($("off-expert").value)];
  return changes;
}


// ---- Looking --------------------------------------------------------------------------------------------------------

/* The token that is looked at: {run, t}, or null. */
const looked = () => state.hovered ?? state.kept ?? state.latest;

/* The reader points at token t of a run with the mouse (t null: at none), or keeps it. */
function point(run, t, kept) {
  if (kept) {
    panel.folded = false;
    return keep(run, t);
  }
  state.hovered = t === null ? null : { run, t };
  refresh();
}

function keep(run, t) {
  [state.kept, state.hovered, state.following] = [{ run, t }, null, false];
  refresh();
  run.column.spans[t].scrollIntoView({ block: "nearest" });
}

function look(run, t) {
  state.latest = { run, t };
  refresh();
}

function lookWith(layer, head) {
  [state.layer, state.head, state.headChosen] = [layer, head, true];
  refresh();
}

/* Draws what is looked at. */
function refresh() {
  const at = looked();
  for (const run of state.shown) {
    if (!run.trace) continue;
    run.column.chosen = at && at.run === run ? at.t : null;
    run.column.shade(run.column.chosen, state.layer, state.head);
  }
  if (at && state.shown.includes(at.run)) panel.show(at.run.trace, at.t, state.layer, state.head);
  else $("panel").hidden = true;
}

/* The head after or before the one whose attention is drawn. */
function nextHead(step) {
  const { layers, heads } = looked().run.trace.model, n = layers * heads;
  const next = (state.layer * heads + state.head + step + n) % n;
  lookWith(Math.floor(next / heads), next % heads);
}


// ---- Showing --------------------------------------------------------------------------------------------------------

/* Shows one run, or two side by side. */
function display(runs) {
  state.shown = runs;
  state.latest = null;
  if (state.kept && !runs.includes(state.kept.run)) state.kept = null;
  if (!state.kept && runs.at(-1).trace && runs.at(-1) !== state.running)
    state.kept = { run: runs.at(-1), t: leastSure(runs.at(-1).trace) };
  $("columns").replaceChildren(...runs.map((run) => run.column.element));
  $("columns").className = runs.length > 1 ? "two" : "";
  runs.forEach(heading);
  runButtons();
  verdict();
  refresh();
}

/* How a run is called. */
function nameOf(run) {
  return [run.effort && `${run.effort} effort`, ...describeRun(run)].filter(Boolean).join(", ");
}

const describeRun = (run) => run.trace ? run.trace.changes : describeChanges(run.changes);

/* What the run says of itself, above its text. */
function heading(run) {
  run.column.title.textContent = nameOf(run);
  if (!run.trace) return;
  const written = run.trace.tokens.filter((token) => !token.given).length;
  const speed = run.seconds ? `, computed in ${run.seconds.toFixed(1)} s: ` +
    `${Math.round(run.trace.tokens.length / run.seconds)} tokens a second` : "";
  run.column.said.textContent = `${run.trace.tokens.length - written} tokens read, ${written} written` +
    (run === state.running ? "" : speed) + (run.note ? ` (${run.note})` : "");
}

/* The runs so far, to show one again, or to put one beside another. */
function runButtons() {
  const several = new Set(state.runs.map((run) => run.question)).size > 1;
  $("runs").hidden = state.runs.length < 2;
  $("runs").replaceChildren(...state.runs.map((run) => {
    const shown = state.shown.includes(run);
    return h("span", { class: "pill" },
      h("button", { type: "button", "aria-pressed": String(shown), onclick: () => display([run]) },
        several && [h("small", {}, run.question), h("br")], nameOf(run)),
      h("button", { type: "button", disabled: shown, title: "beside the first one that is shown",
        "aria-label": `${nameOf(run)}: beside the first one that is shown`,
        onclick: () => display([state.shown[0], run]) }, "◫"));
  }));
}

/* The answer of a run: what was said on channel final, or "". */
function answerOf(run) {
  return run.trace.tokens.filter((token) => !token.given && token.channel === "final" && token.part === "content" &&
    !token.special).map((token) => token.text).join("").trim();
}

/* What there is to say of two runs side by side: their answers, and where they part. */
function verdict() {
  $("verdict").textContent = "";
  for (const run of state.shown) run.column.spans.forEach((span) => span.classList.remove("parted"));
  if (state.shown.length < 2 || state.shown.some((run) => !run.trace || run === state.running)) return;
  const [a, b] = state.shown, [first, second] = state.shown.map(answerOf);
  const quoted = (answer) => answer ? `“${answer}”` : "no answer";
  const reply = (run) => run.trace.tokens.filter((token) => !token.given);
  const ids = reply(b).map((token) => token.id);
  const parted = reply(a).findIndex((token, n) => token.id !== ids[n]);
  const words = [a, b].map((run) => visible(reply(run)[parted]?.text ?? "the end"));
  if (parted >= 0)
    for (const run of state.shown)
      run.column.spans[run.trace.tokens.length - reply(run).length + parted]?.classList.add("parted");
  $("verdict").append(h("b", {}, nameOf(b)),
    first === second ? ": the same answer, " : ": another answer, ", quoted(second),
    ...(first === second ? [". "] : [", where ", h("b", {}, nameOf(a)), " has ", quoted(first), ". "]),
    parted < 0 ? "Not one token differs." : `The replies part at token ${parted + 1}: ${words.join(" and ")}.`);
}

/* The buttons say what can be done. */
function buttons() {
  const running = state.running !== null;
  $("run").textContent = running ? "Stop" : "Run";
  $("both").disabled = running;
  $("changed").textContent = describeChanges(changesWanted()).join(", ");
}


// ---- The beginning --------------------------------------------------------------------------------------------------

/* What the reader can do with the model of this page. */
function offer() {
  const { config } = state;
  $("ask").hidden = false;
  $("examples").append(...EXAMPLES.map((question) => h("button", { type: "button", onclick: () => {
    $("question").value = question;
    ask();
  } }, question)));
  const choices = (id, label, n) => h("label", {}, label, h("select", { id, onchange: changedSwitch },
    Array.from({ length: n }, (_, i) => h("option", { value: i }, String(i)))));
  $("switches").append(...SWITCHES.map(([name, label, sentence]) => h("div", { class: "switch" },
    h("input", { type: "checkbox", role: "switch", id: `switch-${name}`, onchange: changedSwitch,
      "aria-describedby": `about-${name}` }),
    h("label", { for: `switch-${name}` }, label),
    h("p", { id: `about-${name}` }, sentence.replace("{W}", config.sliding_window),
      name === "expertOff" && h("span", { class: "choices" }, choices("off-layer", "layer ", config.num_hidden_layers),
        choices("off-expert", "expert ", config.num_local_experts))))));
  $("slow").checked = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.running) [state.stopping, state.waiting] = [true, null];
    else {
      state.following = true; // the text is kept in sight until the reader scrolls
      ask();
    }
  });
  $("both").addEventListener("click", askBoth);
  for (const radio of document.querySelectorAll("[name=effort]")) radio.addEventListener("change", ask);
}

function changedSwitch(event) {
  state.expertChosen ||= event.target.tagName === "SELECT";
  buttons();
  if (event.target.tagName !== "SELECT" || $("switch-expertOff").checked) ask();
}

function begin() {
  const checkpoint = JSON.parse($("checkpoint").textContent), trace = JSON.parse($("trace").textContent);
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey || !looked()) return;
    if (event.key === "[") nextHead(-1);
    if (event.key === "]") nextHead(1);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], { run, t } = looked();
    if (step && !event.target.closest(".text") && run.trace.tokens[t + step]) keep(run, t + step);
  });
  for (const name of ["wheel", "touchmove"]) addEventListener(name, () => state.following = false, { passive: true });
  if (trace) {
    const run = { question: trace.question, effort: trace.effort, changes: {}, trace, seconds: 0, note: "" };
    run.column = new Column((t, kept) => point(run, t, kept));
    run.column.catchUp(trace);
    state.runs = [run];
    document.title = `${trace.question} (a recorded run)`;
    $("about").textContent = `A recorded run of ${trace.model.name}: ${trace.question}`;
    firstLook(trace);
    display([run]);
    return;
  }
  const stop = [checkpoint.generation_config?.eos_token_id ?? checkpoint.config.eos_token_id].flat();
  Object.assign(state, { config: { ...checkpoint.config, name: checkpoint.name, eos_token_id: stop },
    weights: loadWeights(checkpoint), tokenizer: new Tokenizer(checkpoint.tokenizer) });
  const size = atob(checkpoint.weights).length / 1e6;
  $("about").textContent = `A reasoning model of ${size.toFixed(1)} MB is in this page, and it runs on your machine: ` +
    "nothing is sent anywhere. Ask it about numbers, letters or weekdays, and look into every token.";
  window.gptoss = {
    logits: (ids, changes = {}) => logitsAfter(new Model(state.config, state.weights, changes), ids),
    encode: (text) => state.tokenizer.encode(text),
    decode: (ids) => state.tokenizer.decode(ids),
    trace: (question, effort, { changes = {}, date, maxTokens } = {}) => {
      let trace = null;
      for (trace of think(new Model(state.config, state.weights, changes), state.tokenizer,
        { question, effort, date, maxTokens }));
      return trace;
    },
  };
  offer();
  addEventListener("hashchange", askAddress);
  askAddress();
}

/* Asks what the address of the page says, no longer than what can be typed. */
function askAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1)), field = $("question");
  field.value = (wanted.get("question") ?? EXAMPLES[0]).slice(0, field.maxLength);
  if (EFFORTS.includes(wanted.get("effort"))) document.querySelector(`[value=${wanted.get("effort")}]`).checked = true;
  buttons();
  ask();
}

begin();

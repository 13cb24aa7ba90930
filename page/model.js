"use strict";

/* gpt-oss in JavaScript: from the bytes of a checkpoint to the next token. It is the twin of gptoss.py, with the same
   letters, the same names and the same order.

       number formats -> operations -> KV cache -> model -> generate

       N  hidden_size          H  query heads             E  num_local_experts       V  vocab_size
       F  intermediate_size    G  key/value heads         K  num_experts_per_tok     W  sliding_window
       L  layers               D  head_dim                S  tokens read so far, the new one included

   gptoss.py reads T tokens in a call. This file reads one, so where a shape there is [T, N], it is [N] here. Arrays are
   Float32Array; a matrix [M, N] lies there row by row. JavaScript computes in float64 and rounds to float32 when it
   stores a number, so results differ from NumPy's in the sixth digit.

   The model can be changed before it runs. `changes` is an object with some of

       noSink: true           the softmax of a head has no sink
       window: 8              sliding layers see this many keys, the token itself included
       bestOnly: true         of the K chosen experts the best counts alone, with weight 1
       expertOff: [layer, e]  this expert cannot be chosen
       noYarn: true           plain RoPE: no frequency is stretched, and the attention factor is 1
       softmaxAll: true       the weights are a softmax over all E experts, of which the K best are taken as they are */


// ---- Number formats -------------------------------------------------------------------------------------------------

/* The tensors of a safetensors file: {name: Uint8Array}. Eight bytes of length, that much JSON, then the tensors. */
function readTensors(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { data_offsets: [begin, end] }] of Object.entries(header))
    tensors[name] = bytes.slice(8 + length + begin, 8 + length + end); // a copy: it begins where 16 bits may begin
  return tensors;
}

/* bf16 is the upper half of a float32: bytes [2 n] -> float32 [n], exactly. */
function bf16ToFloat32(bytes) {
  return new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (bits) => bits << 16).buffer);
}

const oneFloat = new Float32Array(1), itsBits = new Uint32Array(oneFloat.buffer);

/* A number rounded to bf16, to the nearest, ties to even. */
function roundToBf16(x) {
  oneFloat[0] = x;
  itsBits[0] = (itsBits[0] + 0x7fff + ((itsBits[0] >>> 16) & 1)) & 0xffff0000;
  return oneFloat[0];
}

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

/* MXFP4 -> float32, exactly: blocks [..., 16], two numbers a byte, the low half first; scales [...], 2^(byte - 127),
   one for each 32 numbers. */
function dequantize(blocks, scales) {
  const y = new Float32Array(2 * blocks.length);
  for (let b = 0; b < scales.length; b++) {
    const scale = 2 ** (scales[b] - 127);
    for (let j = 0; j < 16; j++) {
      const byte = blocks[16 * b + j];
      y[32 * b + 2 * j] = E2M1[byte & 15] * scale;
      y[32 * b + 2 * j + 1] = E2M1[byte >> 4] * scale;
    }
  }
  return y;
}


// ---- Operations -----------------------------------------------------------------------------------------------------

/* e^x over its sum. The largest x is taken away first, so that nothing overflows. */
function softmax(x) {
  const e = new Float64Array(x.length);
  let largest = -Infinity, sum = 0;
  for (let n = 0; n < x.length; n++) if (x[n] > largest) largest = x[n];
  for (let n = 0; n < x.length; n++) sum += e[n] = Math.exp(x[n] - largest);
  for (let n = 0; n < x.length; n++) e[n] /= sum;
  return e;
}

/* The root mean square of x [N]: the size of the residual stream. */
function rms(x) {
  let sum = 0;
  for (let n = 0; n < x.length; n++) sum += x[n] * x[n];
  return Math.sqrt(sum / x.length);
}

/* x [N] / its root mean square, times weight [N]. */
function rmsNorm(x, weight, eps) {
  const scale = 1 / Math.sqrt(rms(x) ** 2 + eps), y = new Float32Array(x.length);
  for (let n = 0; n < x.length; n++) y[n] = x[n] * scale * weight[n];
  return y;
}

/* weight [M, N] times x [N], plus bias [M] -> [M]. Four sums at a time: each waits for its own last addition only. */
function linear(x, weight, bias = null) {
  const N = x.length, M = weight.length / N, y = new Float32Array(M);
  for (let m = 0; m < M; m++) {
    let a = 0, b = 0, c = 0, d = 0;
    for (let n = 0, w = m * N; n < N; n += 4, w += 4) { // N is a multiple of 32, the MXFP4 block
      a += x[n] * weight[w];
      b += x[n + 1] * weight[w + 1];
      c += x[n + 2] * weight[w + 2];
      d += x[n + 3] * weight[w + 3];
    }
    y[m] = a + b + (c + d) + (bias ? bias[m] : 0);
  }
  return y;
}

/* Radians that each pair of a head turns per position [D/2], and the attention factor for cos and sin. YaRN: pairs that
   turn more than beta_fast times within the original context keep their frequency, those that turn less than beta_slow
   times have it divided by `factor`, and between the two it is blended. */
function ropeFrequencies(config) {
  const half = config.head_dim / 2, yarn = config.rope_scaling;
  const extrapolated = Float32Array.from({ length: half }, (_, i) => config.rope_theta ** (-i / half));
  if (!yarn) return [extrapolated, 1];
  const pairTurning = (turns) => // the pair, a real number, that turns this often within the original context
    half * Math.log(yarn.original_max_position_embeddings / turns / (2 * Math.PI)) / Math.log(config.rope_theta);
  let low = pairTurning(yarn.beta_fast), high = pairTurning(yarn.beta_slow);
  if (yarn.truncate ?? true) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, config.head_dim - 1)];
  const frequencies = extrapolated.map((_, i) => {
    const ramp = Math.min(Math.max((i - low) / Math.max(high - low, 0.001), 0), 1);
    return config.rope_theta ** (-i / half) * (1 - ramp + ramp / yarn.factor);
  });
  return [frequencies, yarn.factor > 1 ? 0.1 * Math.log(yarn.factor) + 1 : 1];
}

/* RoPE on x [heads D]; cos, sin [D/2]. A pair is (d, d + D/2): the HALVES of a head, not neighbours. */
function rotate(x, cos, sin) {
  const half = cos.length, y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += 2 * half)
    for (let d = start, i = 0; i < half; d++, i++) {
      y[d] = x[d] * cos[i] - x[d + half] * sin[i];
      y[d + half] = x[d + half] * cos[i] + x[d] * sin[i];
    }
  return y;
}

/* Grouped-query attention of the token at position S - 1 -> [H D], and what each head looked at.

   q [H D]; k, v [S, G D]; sinks [H], or null. The token sees the keys from `first` to itself. A sink is a learned logit
   of each head that takes part in the softmax and has no value, so that a head may look at nothing. */
function attention(q, k, v, sinks, first, S, { H, G, D }) {
  const y = new Float32Array(H * D), heads = [];
  for (let h = 0; h < H; h++) {
    const at = Math.floor(h / (H / G)) * D; // query head h has key/value head h // (H/G)
    const scores = new Float64Array(S - first + 1); // the last is the sink's
    for (let s = first; s < S; s++) {
      let sum = 0;
      for (let d = 0; d < D; d++) sum += q[h * D + d] * k[s * G * D + at + d];
      scores[s - first] = sum / Math.sqrt(D);
    }
    scores[S - first] = sinks ? sinks[h] : -Infinity;
    const p = softmax(scores);
    for (let s = first; s < S; s++)
      for (let d = 0; d < D; d++) y[h * D + d] += p[s - first] * v[s * G * D + at + d];
    heads.push({ sink: p[S - first], first, weights: Float32Array.from(p.subarray(0, S - first)) });
  }
  return [y, heads];
}

/* The K best of E experts, best first: [[e, weight], ...]. The weights are a softmax over those K. */
function route(logits, K, changes) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, K);
  const all = changes.softmaxAll, p = softmax(all ? logits : order.map((e) => logits[e]));
  return order.map((e, slot) => [e, changes.bestOnly ? Number(slot === 0) : p[all ? e : slot]]);
}

/* Clamped SwiGLU: [2F] -> [F]. Gate and up are interleaved: even rows gate, odd rows up. */
function swiglu(gateUp, limit) {
  const y = new Float32Array(gateUp.length / 2);
  for (let f = 0; f < y.length; f++) {
    const gate = Math.min(gateUp[2 * f], limit); // clamped from above only
    const up = Math.min(Math.max(gateUp[2 * f + 1], -limit), limit);
    y[f] = gate / (1 + Math.exp(-1.702 * gate)) * (up + 1);
  }
  return y;
}

/* Mixture of experts: x [N] -> [N]. Each chosen expert: up, SwiGLU, down, weighted. */
function experts(x, chosen, layer, limit) {
  const y = new Float32Array(x.length);
  for (const [e, weight] of chosen) {
    const expert = layer.experts[e];
    const h = swiglu(linear(x, expert.gateUp, expert.gateUpBias), limit); // [F]
    const out = linear(h, expert.down, expert.downBias); // [N]
    for (let n = 0; n < y.length; n++) y[n] += weight * out[n];
  }
  return y;
}

/* Adds y to x, both [N], in place. */
function add(x, y) {
  for (let n = 0; n < x.length; n++) x[n] += y[n];
}


// ---- KV cache -------------------------------------------------------------------------------------------------------

/* The keys and values of the tokens so far: for each layer k and v, [room, G D], of which `length` rows are in use.
   They are rounded to bf16 unless dtype is "float32", as those of gptoss.py are. */
class KVCache {
  constructor(model, dtype = "bfloat16") {
    this.length = 0;
    this.round = dtype === "bfloat16" ? roundToBf16 : (x) => x;
    this.width = model.shape.G * model.shape.D;
    this.layers = model.weights.layers.map(() => ({ k: new Float32Array(0), v: new Float32Array(0) }));
  }

  /* Stores k and v [G D] as row `length` of layer i. The row counts once `length` is raised, after the last layer. */
  storeKv(i, k, v) {
    const layer = this.layers[i], at = this.length * this.width;
    for (const [name, row] of [["k", k], ["v", v]]) {
      if (at === layer[name].length) {
        const larger = new Float32Array(Math.max(64 * this.width, 2 * at));
        larger.set(layer[name]);
        layer[name] = larger;
      }
      layer[name].set(row.map(this.round), at);
    }
    return layer;
  }
}


// ---- Model ----------------------------------------------------------------------------------------------------------

/* The weights of a checkpoint as Float32Arrays, experts unpacked: 2 million numbers take 8 MB.
   checkpoint: {config, weights: the bytes of model.safetensors in base64}. */
function loadWeights({ config, weights }) {
  const tensors = readTensors(Uint8Array.from(atob(weights), (c) => c.charCodeAt(0)));
  const bf16 = (name) => bf16ToFloat32(tensors[name]);
  const E = config.num_local_experts;
  const layers = config.layer_types.map((kind, i) => {
    const name = `model.layers.${i}`, mlp = `${name}.mlp.experts`;
    const unpack = (part) => dequantize(tensors[`${mlp}.${part}_blocks`], tensors[`${mlp}.${part}_scales`]);
    const part = (all, e) => all.subarray(e * all.length / E, (e + 1) * all.length / E); // expert e's, not copied
    const gateUp = unpack("gate_up_proj"), gateUpBias = bf16(`${mlp}.gate_up_proj_bias`); // [E, 2F, N], [E, 2F]
    const down = unpack("down_proj"), downBias = bf16(`${mlp}.down_proj_bias`); // [E, N, F], [E, N]
    const linearOf = (proj) => [bf16(`${name}.${proj}.weight`), bf16(`${name}.${proj}.bias`)];
    return {
      sliding: kind === "sliding_attention",
      attnNorm: bf16(`${name}.input_layernorm.weight`), // [N]
      q: linearOf("self_attn.q_proj"), // [H D, N], [H D]
      k: linearOf("self_attn.k_proj"), // [G D, N], [G D]
      v: linearOf("self_attn.v_proj"), // [G D, N], [G D]
      sinks: bf16(`${name}.self_attn.sinks`), // [H]
      o: linearOf("self_attn.o_proj"), // [N, H D], [N]
      mlpNorm: bf16(`${name}.post_attention_layernorm.weight`), // [N]
      router: linearOf("mlp.router"), // [E, N], [E]
      experts: Array.from({ length: E }, (_, e) => ({
        gateUp: part(gateUp, e), // [2F, N]
        gateUpBias: part(gateUpBias, e), // [2F]
        down: part(down, e), // [N, F]
        downBias: part(downBias, e), // [N]
      })),
    };
  });
  return {
    embedding: bf16("model.embed_tokens.weight"), // [V, N]
    layers,
    norm: bf16("model.norm.weight"), // [N]
    unembedding: bf16("lm_head.weight"), // [V, N]
  };
}

/* A model that can be run, with some `changes` (see above). The weights are shared, so another one costs nothing. */
class Model {
  constructor(config, weights, changes = {}) {
    this.config = config;
    this.weights = weights;
    this.changes = changes;
    this.stop = [config.eos_token_id].flat(); // ids that end a reply
    this.shape = { H: config.num_attention_heads, G: config.num_key_value_heads, D: config.head_dim };
    [this.frequencies, this.factor] = ropeFrequencies(changes.noYarn ? { ...config, rope_scaling: null } : config);
  }

  /* Reads the token `id`, which follows those in the cache -> the logits of the next one [V]. `watch`, if given, is
     called with what happened in each layer, as a trace has it. */
  read(id, cache, watch = null) {
    const { config, weights } = this, N = config.hidden_size;
    const x = weights.embedding.slice(id * N, (id + 1) * N); // [N], the residual stream
    const angles = this.frequencies.map((turn) => turn * cache.length); // [D/2]
    const cos = angles.map((angle) => Math.cos(angle) * this.factor);
    const sin = angles.map((angle) => Math.sin(angle) * this.factor);
    let logits = null;
    for (let i = 0; i < weights.layers.length; i++) {
      const before = rms(x);
      const [attended, heads] = this.attend(i, x, cos, sin, cache); // [N]
      add(x, attended);
      const [mixed, chosen] = this.mlp(i, x); // [N]
      add(x, mixed);
      if (watch || i === weights.layers.length - 1) logits = this.unembed(x);
      if (watch) watch({ size_before: before, size: rms(x), experts: chosen, heads }, logits);
    }
    cache.length += 1;
    return logits;
  }

  /* The stream x [N] as logits [V]. After the last layer these are the model's; before it, this is the logit lens. */
  unembed(x) {
    return linear(rmsNorm(x, this.weights.norm, this.config.rms_norm_eps), this.weights.unembedding);
  }

  /* What layer i's attention adds to the residual stream: x [N] -> [N], and what each head looked at. */
  attend(i, x, cos, sin, cache) {
    const layer = this.weights.layers[i], S = cache.length + 1;
    x = rmsNorm(x, layer.attnNorm, this.config.rms_norm_eps);
    const q = rotate(linear(x, ...layer.q), cos, sin); // [H D]
    const { k, v } = cache.storeKv(i, rotate(linear(x, ...layer.k), cos, sin), linear(x, ...layer.v)); // [S, G D]
    const window = layer.sliding ? this.changes.window ?? this.config.sliding_window : S;
    const sinks = this.changes.noSink ? null : layer.sinks;
    const [y, heads] = attention(q, k, v, sinks, Math.max(0, S - window), S, this.shape); // [H D]
    return [linear(y, ...layer.o), heads]; // [N]
  }

  /* What layer i's experts add to the residual stream: x [N] -> [N], and which were chosen. */
  mlp(i, x) {
    const layer = this.weights.layers[i], [offLayer, off] = this.changes.expertOff ?? [];
    x = rmsNorm(x, layer.mlpNorm, this.config.rms_norm_eps);
    const logits = linear(x, ...layer.router); // [E]
    if (offLayer === i) logits[off] = -Infinity;
    const chosen = route(logits, this.config.num_experts_per_tok, this.changes);
    return [experts(x, chosen, layer, this.config.swiglu_limit), chosen];
  }
}


// ---- Generating -----------------------------------------------------------------------------------------------------

/* The index of the largest; of equal ones the first. */
function argmax(x) {
  let best = 0;
  for (let n = 1; n < x.length; n++) if (x[n] > x[best]) best = n;
  return best;
}

/* The three most probable ids: [[id, p], ...]. */
function threeBest(p) {
  const best = [];
  for (let id = 0; id < p.length; id++) {
    if (best.length === 3 && p[id] <= best[2][1]) continue;
    best.splice(best.findIndex(([, other]) => p[id] > other) >>> 0, 0, [id, p[id]]); // -1 >>> 0: at the end
    best.length = Math.min(best.length, 3);
  }
  return best;
}

/* Yields the tokens of prompt and reply in order, the likeliest always (temperature 0), a stop token last: objects
   {id, given, probability, layers, best}. What the model makes of a token is filled in when the generator goes on to
   the next: `layers`, and `best`, what it thinks will come after it. (The last token is never read.) */
function* generate(model, prompt, maxTokens, cache = new KVCache(model)) {
  let p = null, id = prompt[0];
  for (let n = 0; n < prompt.length + maxTokens; n++) {
    const token = { id, given: n < prompt.length, probability: p && p[id], layers: null, best: null };
    yield token;
    if ((!token.given && model.stop.includes(id)) || n + 1 === prompt.length + maxTokens) return;
    if (cache.length === model.config.max_position_embeddings) return;
    const layers = [];
    const logits = model.read(id, cache, (layer, lens) => layers.push({ ...layer, lens: threeBest(softmax(lens)) }));
    p = softmax(logits);
    [token.layers, token.best] = [layers, threeBest(p)];
    id = n + 1 < prompt.length ? prompt[n + 1] : argmax(logits);
  }
}

/* The logits [V] after a sequence of ids, with a cache of float32. */
function logitsAfter(model, ids) {
  const cache = new KVCache(model, "float32");
  let logits = null;
  for (const id of ids) logits = model.read(id, cache);
  return logits;
}

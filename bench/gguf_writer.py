"""The same weights as GGUF, the file of llama.cpp, so that both programs can be measured on them.

Format: github.com/ggml-org/ggml, docs/gguf.md. Nothing is quantized anew but the dense weights of Q8_0. Letters as in
gptoss.py.
"""

import shutil
from math import prod

import numpy as np

import gptoss
from bench.random_checkpoint import atomic_write, progress_bar
from checkpoint import MXFP4, bf16_to_float32, expect


def gguf_mxfp4(weight):
    """MXFP4 [..., M, N] -> uint8 [..., M, N/32 * 17]: the scale, then 16 bytes whose low nibbles are the elements 0 to
    15 of the block and whose high nibbles are 16 to 31, where a checkpoint packs neighbours."""
    numbers = np.stack([weight.blocks & 15, weight.blocks >> 4], axis=-1)  # [..., M, N/32, 16, 2]
    first, last = np.moveaxis(numbers.reshape(*weight.scales.shape, 2, 16), -2, 0)
    blocks = np.concatenate([weight.scales[..., None], first | last << 4], axis=-1)
    return blocks.reshape(*weight.scales.shape[:-1], -1)


def gguf_tensors(model, layers, dense):
    """Yield (name, type, shape, pieces) for each tensor of the file, with the model's first `layers` layers: pieces()
    yields its bytes, a few MB at a time. `dense` is the type of the dense weights, BF16 or Q8_0."""
    from gguf import GGMLQuantizationType as Type
    from gguf import quants

    def exact(array):
        return Type.F32, array.shape, lambda: [bf16_to_float32(array)]

    def matrix(array):
        def pieces():
            for r in range(0, len(array), 4096):
                rows = array[r : r + 4096]
                yield rows if dense == Type.BF16 else quants.quantize(bf16_to_float32(rows), dense)
        return dense, array.shape, pieces

    def experts(weight, rows):
        def pieces():
            for blocks, scales in zip(weight.blocks, weight.scales, strict=True):
                yield gguf_mxfp4(MXFP4(blocks[rows], scales[rows]))
        E, M, columns = weight.scales[:, rows].shape
        return Type.MXFP4, (E, M, columns * 32), pieces

    yield "token_embd.weight", *matrix(model.embedding)
    yield "output_norm.weight", *exact(model.norm)
    yield "output.weight", *matrix(model.unembedding)
    for i, layer in enumerate(model.layers[:layers]):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", *exact(layer.attn_norm)
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
            yield f"{block}attn_{theirs}.weight", *matrix(getattr(layer, f"{ours}_weight"))
            yield f"{block}attn_{theirs}.bias", *exact(getattr(layer, f"{ours}_bias"))
        yield block + "attn_sinks.weight", *exact(layer.sinks)
        yield block + "post_attention_norm.weight", *exact(layer.mlp_norm)
        yield block + "ffn_gate_inp.weight", *exact(layer.router_weight)
        yield block + "ffn_gate_inp.bias", *exact(layer.router_bias)
        even, odd, every = slice(0, None, 2), slice(1, None, 2), slice(None)  # gate and up are interleaved
        for name, weight, bias, rows in (("gate", layer.gate_up, layer.gate_up_bias, even),
                                         ("up", layer.gate_up, layer.gate_up_bias, odd),
                                         ("down", layer.down, layer.down_bias, every)):
            yield f"{block}ffn_{name}_exps.weight", *experts(weight, rows)
            yield f"{block}ffn_{name}_exps.bias", *exact(bias[:, rows])


def write_gguf(path, directory, config, dense_dtype):
    """The layers of `config` of the checkpoint in `directory` as a GGUF file for llama.cpp; dense weights BF16 for
    "bfloat16", Q8_0 for "int8". Raises ValueError where llama.cpp knows no such model or the disk is too small."""
    from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
    from gguf.quants import quant_shape_to_byte_shape

    c, model = config, gptoss.load(directory, backend="numpy")
    expect(c.swiglu_limit == 7, ValueError, f"{directory}: swiglu_limit", "7, all that llama.cpp knows", c.swiglu_limit)
    published = all(isinstance(weight, MXFP4) for layer in model.layers for weight in (layer.gate_up, layer.down))
    expect(published and model.embedding.dtype == np.uint16, ValueError, directory, "weights as published, bf16 and "
           "MXFP4, to write for llama.cpp", "others")
    dense = GGMLQuantizationType.BF16 if dense_dtype == "bfloat16" else GGMLQuantizationType.Q8_0
    tensors = list(gguf_tensors(model, c.num_hidden_layers, dense))
    sizes = [prod(quant_shape_to_byte_shape(shape, kind)) for _, kind, shape, _ in tensors]
    free = shutil.disk_usage(path.parent).free
    expect(sum(sizes) <= free, ValueError, path, f"room for {sum(sizes) / 1e9:.1f} GB", f"{free / 1e9:.1f} GB")

    with atomic_write(path) as out, progress_bar() as bar:
        file = GGUFWriter(out.name, "gpt-oss")  # opens the same file
        for add, value in (
            (file.add_vocab_size, c.vocab_size),
            (file.add_block_count, c.num_hidden_layers),
            (file.add_context_length, c.max_position_embeddings),
            (file.add_embedding_length, c.hidden_size),
            (file.add_feed_forward_length, c.intermediate_size),
            (file.add_expert_feed_forward_length, c.intermediate_size),
            (file.add_expert_count, c.num_local_experts),
            (file.add_expert_used_count, c.num_experts_per_tok),
            (file.add_head_count, c.num_attention_heads),
            (file.add_head_count_kv, c.num_key_value_heads),
            (file.add_key_length, c.head_dim),
            (file.add_value_length, c.head_dim),
            (file.add_sliding_window, c.sliding_window),
            (file.add_sliding_window_pattern, [kind == "sliding_attention" for kind in c.layer_types]),
            (file.add_layer_norm_rms_eps, c.rms_norm_eps),
            (file.add_rope_freq_base, c.rope_theta),
            (file.add_tokenizer_model, "none"),  # token ids go in, logits come out
        ):
            add(value)
        if c.rope_scaling:  # (llama.cpp reads no key for the betas here)
            file.add_rope_scaling_type(RopeScalingType.YARN)
            file.add_rope_scaling_factor(c.rope_scaling["factor"])
            file.add_rope_scaling_orig_ctx_len(c.rope_scaling["original_max_position_embeddings"])
        for (name, kind, shape, _), size in zip(tensors, sizes, strict=True):
            file.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_ti_data_to_file()
        [data] = file.fout
        file.write_padding(data, data.tell())
        task = bar.add_task(path.name, total=sum(sizes))
        for (_, _, _, pieces), size in zip(tensors, sizes, strict=True):
            for piece in pieces():
                data.write(np.ascontiguousarray(piece))
                bar.advance(task, piece.nbytes)
            file.write_padding(data, size)
        file.close()

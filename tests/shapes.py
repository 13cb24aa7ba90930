"""Small shapes for tests. No two dimensions are equal, so that a swapped axis cannot hide. Windows are 4 and 5, with
sequences over three times as long, and one is the real window of 128."""

from dataclasses import replace

from checkpoint import Config

S, F = "sliding_attention", "full_attention"


def yarn(**changes):
    published = {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}
    return published | {"truncate": False} | changes


SMALL = Config(
    vocab_size=211, hidden_size=96, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=10, num_local_experts=7, num_experts_per_tok=4, sliding_window=5,
    rope_theta=150000.0, layer_types=(S, F, S), rope_scaling=yarn(), max_position_embeddings=1024, eos_token_id=(7, 9),
)
SHAPES = {  # name: (config, tokens)
    "window 5": (SMALL, 17),
    "window 4, full attention first": (
        replace(SMALL, vocab_size=173, hidden_size=32, intermediate_size=160, num_hidden_layers=2, layer_types=(F, S),
                num_attention_heads=9, num_key_value_heads=3, head_dim=14, num_local_experts=5, num_experts_per_tok=2,
                sliding_window=4), 13),
    "window 128, 4 layers": (
        replace(SMALL, num_hidden_layers=4, layer_types=(S, F, S, F), head_dim=16, num_attention_heads=10,
                sliding_window=128), 300),
    "one expert of three, YaRN at work": (
        replace(SMALL, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=1, head_dim=22,
                num_local_experts=3, num_experts_per_tok=1, rope_theta=10000.0, swiglu_limit=0.7,
                rope_scaling=yarn(factor=8.0, original_max_position_embeddings=512)), 90),
}

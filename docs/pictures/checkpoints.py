"""Pictures of chapter 9: the bytes of a safetensors file, and where the bytes of a checkpoint lie."""

import json
from math import prod
from pathlib import Path

from runs import model
from style import WIDTH, Drawing, picture

from bench.random_checkpoint import SHAPES
from checkpoint import tensor_table

KINDS = (("experts", "green", 0.8), ("attention", "blue", 0.8), ("embedding", "orange", 0.85),
         ("unembedding", "orange", 0.4))


@picture("safetensors")
def safetensors():
    raw = Path("nano/model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    spans = sorted((entry["data_offsets"], name) for name, entry in header.items())
    drawing = Drawing(378, "The bytes of nano/model.safetensors: length, header, tensors",
                      "A column of boxes, one for each part of the file. Bytes 0 to 7 are the length of the header, "
                      f"{size:,}. The header follows, and ends at byte {8 + size:,}. Then come {len(spans)} tensors "
                      "without gaps. On the left are offsets from the beginning of the file, on the right those of the "
                      "header, which begin after it.")
    drawing.text(92, 24, "byte of", "dim", 12, "end")
    drawing.text(92, 39, "the file", "dim", 12, "end")
    drawing.text(366, 24, "data_offsets", "dim", 12)
    drawing.text(366, 39, "in the header", "dim", 12)
    y, start = 52, 8 + size
    shown = [*spans[:4], None, spans[-1]]
    rows = [(0, f"{size:,}: length of the header", "8 bytes", None, "violet"),
            (8, "{ … the header, JSON … }", f"{size:,} bytes", None, "orange")]
    for span in shown:
        if span is None:
            rows.append((None, f"… {len(spans) - len(shown) + 1} more …", "", None, None))
        else:
            (begin, end), full = span
            name = full.replace("model.layers.", "layers.").replace(".mlp.experts.", " … ")
            rows.append((start + begin, name, f"{end - begin:,} bytes", begin, "blue"))
    for at, words, bytes_, begin, color in rows:
        height = 26 if color is None else 40
        if color:
            drawing.rect(100, y, 258, height, color, opacity=0.18)
            drawing.rect(100, y, 258, height, stroke=color)
            drawing.text(92, y + 5, f"{at:,}", size=12, anchor="end", mono=True)
            drawing.text(108, y + 17, words, size=12)
            drawing.text(108, y + 33, bytes_, "dim", 12)
        else:
            drawing.text(229, y + 18, words, "dim", 12, "middle")
        if begin is not None:
            drawing.text(366, y + 5, f"{begin:,}", size=12, mono=True)
        y += height
    drawing.text(92, y + 5, f"{len(raw):,}", size=12, anchor="end", mono=True)
    drawing.text(366, y + 5, f"{len(raw) - start:,}", size=12, mono=True)
    return drawing


def bytes_by_kind(config):
    sizes = dict.fromkeys((kind for kind, _, _ in KINDS), 0)
    for field, _, dtype, shape in tensor_table(config, "hf").values():
        if field in sizes:
            kind = field
        elif field.startswith(("gate_up", "down")):
            kind = "experts"
        elif field.startswith(("q_", "k_", "v_", "o_")):
            kind = "attention"
        else:
            continue  # norms, routers and sinks are too small to be seen
        sizes[kind] += prod(shape) * (2 if dtype == "BF16" else 1)
    return sizes


@picture("bytes-by-kind")
def where_bytes_lie():
    models = {"the small model": model().config, "gpt-oss-20b": SHAPES["20b"], "gpt-oss-120b": SHAPES["120b"]}
    drawing = Drawing(300, "Where the bytes of three checkpoints lie: experts, attention, embedding, unembedding",
                      "Three bars of equal length, each divided by what the bytes are. The experts take about half of "
                      "the small model, three quarters of gpt-oss-20b and most of gpt-oss-120b. Attention, embedding "
                      "and unembedding share the rest.")
    for n, (name, config) in enumerate(models.items()):
        sizes, x, y = bytes_by_kind(config), 20, 44 + 76 * n
        total = sum(sizes.values())
        said = f"{total / 1e9:.1f} GB" if total > 1e9 else f"{total / 1e6:.1f} MB"
        drawing.text(20, y - 10, name, bold=True)
        drawing.text(WIDTH - 20, y - 10, said, "dim", anchor="end")
        for kind, color, opacity in KINDS:
            width = (WIDTH - 40) * sizes[kind] / total
            drawing.rect(x, y, width - 1, 34, color, opacity=opacity)
            if width > 30:
                letters = "paper" if opacity > 0.5 else "ink"
                drawing.text(x + width / 2, y + 22, f"{sizes[kind] / total:.0%}", letters, 12, "middle", bold=True)
            x += width
    for n, (kind, color, opacity) in enumerate(KINDS):
        x = 20 + (0, 88, 184, 296)[n]
        drawing.rect(x, 268, 12, 12, color, opacity=opacity)
        drawing.text(x + 18, 279, kind)
    return drawing

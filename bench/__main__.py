"""python -m bench: load, prefill and decode of a checkpoint, beside the limits of the machine and beside llama.cpp.

    python -m bench                                     the small model
    python -m bench --checkpoint DIR                    any checkpoint
    python -m bench --shape 20b                         a random checkpoint of that shape, written to random-20b/ first
    python -m bench --shape 20b --compare llama.cpp     the same weights in llama.cpp, by turns
"""

if __name__ == "__main__":
    import program

    program.begin()

import argparse
import json
import sys
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

import program
from bench.measure import MAPPED, REPACKED, available_cores, benchmark, report
from bench.random_checkpoint import SHAPES, named_config, write_random
from checkpoint import read_config

ROOT = Path(__file__).resolve().parent.parent
INSTALL = ("--compare needs llama-cpp-python and gguf: pip install llama-cpp-python==0.3.36 gguf "
           "(built from source with a C++ compiler, about ten minutes)")


@program.ends("python -m bench")
def main():
    parser = program.parser("python -m bench", "Measure load, prefill and decode beside the machine's limits.")

    def positive(text):
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
        return int(text)

    parser.add_argument("--checkpoint", metavar="DIR", type=Path, default=ROOT / "nano")
    parser.add_argument("--shape", choices=SHAPES, help="measure a random checkpoint of this shape")
    parser.add_argument("--layers", type=int, metavar="N", help="with only its first N layers")
    parser.add_argument("--experts", choices=("mxfp4", "bfloat16"), default="mxfp4",
                        help="with --shape: as published, or as a fine-tuning leaves them")
    parser.add_argument("--dense-dtype", choices=("bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--compare", choices=(MAPPED, REPACKED), nargs="+", default=[],
                        help="measure llama.cpp by turns: with its weights mapped as stored, or copied and rearranged")
    parser.add_argument("--prompt", type=positive, default=512, metavar="T", help="tokens to prefill (default: 512)")
    parser.add_argument("--depth", type=positive, nargs="+", default=[128], metavar="T",
                        help="tokens before those decoded (default: 128)")
    parser.add_argument("--tokens", type=positive, default=20, metavar="T", help="tokens to decode at each depth")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of each program (default: 3)")
    parser.add_argument("--threads", type=positive, default=available_cores(), metavar="N", help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    for option, given in (("--layers", args.layers is not None), ("--experts", args.experts != "mxfp4")):
        if given and not args.shape:
            parser.error(f"{option}: expected with --shape, found alone")
    if args.threads > (cores := available_cores()):
        parser.error(f"--threads: expected at most {cores}, the cores there are, found {args.threads}")
    if args.compare and not (find_spec("llama_cpp") and find_spec("gguf")):
        parser.exit(2, f"{parser.prog}: {INSTALL}\n")

    path = args.checkpoint.resolve()
    try:
        if args.shape:
            config = named_config(args.shape, args.layers)
            packed, layers = args.experts == "mxfp4", f"-{args.layers}-layers" if args.layers else ""
            path = ROOT / f"random-{args.shape}{layers}{'' if packed else '-unpacked'}"
            if not (path / "config.json").exists():
                write_random(path, config, packed=packed, progress=True)
        config, _ = read_config(path)
        results = benchmark(path, config, args.dense_dtype, args.compare, args.threads, args.prompt,
                            sorted(args.depth), args.tokens, args.rounds)
    except BrokenProcessPool:
        raise ValueError("a measuring process ended before its time (out of memory?)") from None
    print(json.dumps(results, indent=1)) if args.json else report(results)


if __name__ == "__main__":
    sys.exit(main())

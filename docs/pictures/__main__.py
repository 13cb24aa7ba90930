"""Draws the pictures of the chapters, each from a run of the small model.

    python docs/pictures                draws all of them: docs/pictures/NAME.svg
    python docs/pictures NAME ...       these
    python docs/pictures --check        draws nothing; exit status 1 where a file is not what a run gives

The other files of this folder, one for each chapter, say what is drawn; style.py says how it looks.
"""

import importlib
import os
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent.parent)]

if __name__ == "__main__":
    import program

    program.begin()

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the small model has no work for two

from style import PICTURES  # noqa: E402

import program  # noqa: E402

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def slack(number, in_a_tag):
    """How far another run's number may be from this one, a text. Another processor may sum in another order: a place
    may come to the next tenth of a pixel, and the last digit of a label to the next one."""
    return 0.101 if in_a_tag else 1.01 * 10.0 ** -len(number.partition(".")[2]) if "." in number else 0


def same(old, new):
    """Whether two SVG texts differ in the last digits of their numbers at most."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return False
    parts = zip(re.findall("<[^>]*>|[^<]+", old), re.findall("<[^>]*>|[^<]+", new), strict=True)
    return all(abs(float(a) - float(b)) <= slack(a, before.startswith("<")) for before, after in parts
               for a, b in zip(NUMBER.findall(before), NUMBER.findall(after), strict=True))


@program.ends("docs/pictures", unread=1)
def main():
    for file in sorted(FOLDER.glob("*.py")):
        if file.stem not in ("style", "__main__"):
            importlib.import_module(file.stem)
    parser = program.parser("docs/pictures", "Draw the pictures of the chapters.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--check", action="store_true", help="draw nothing, name the files that are not up to date")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - PICTURES.keys())
    if unknown:
        parser.error(f"expected names of pictures ({', '.join(PICTURES)}), found {', '.join(unknown)}")
    stale = []
    for name in args.names or PICTURES:
        path, new = FOLDER / f"{name}.svg", PICTURES[name]().svg()
        if not path.exists() or not same(path.read_text(encoding="utf-8"), new):
            stale.append(name)
            if not args.check:
                path.write_text(new, encoding="utf-8")
    if args.check:
        unmade = sorted({path.stem for path in FOLDER.glob("*.svg")} - PICTURES.keys())
        for name in stale + unmade:
            print(f"docs/pictures/{name}.svg: expected what a run draws, found something else")
        return int(bool(stale or unmade))
    print(f"{len(args.names or PICTURES)} pictures, {len(stale)} of them new or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

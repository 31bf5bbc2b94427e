#!/usr/bin/env bash
# The embedding server that `pytest -m server` asks: infinity, serving all-MiniLM-L6-v2, in an environment of its own
# (it wants other versions of numpy and transformers than eyas). The folder is EYAS_INFINITY; nothing happens where the
# versions below are in it already.
#
#   EYAS_INFINITY=.infinity tests/services/install_infinity.sh
#   EYAS_INFINITY=.infinity python -m pytest -m server
set -euo pipefail

: "${EYAS_INFINITY:?set EYAS_INFINITY to the folder of the environment}"
here="$(cd "$(dirname "$0")" && pwd)"
pins="$here/infinity.txt"
if cmp -s "$pins" "$EYAS_INFINITY/installed.txt"; then
  exit 0
fi
"${PYTHON:-python3}" -m venv "$EYAS_INFINITY"
"$EYAS_INFINITY/bin/python" -m pip install --quiet -r "$pins"
cp "$pins" "$EYAS_INFINITY/installed.txt"

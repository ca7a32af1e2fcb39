#!/usr/bin/env bash
# Builds the site into docs/_build/html, in a virtual environment of its own. Warnings
# are errors, internal links that lead nowhere among them.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
make_venv .venv-docs docs
rm -rf docs/_build
.venv-docs/bin/python -m sphinx -b html --fail-on-warning --keep-going --quiet -j 2 \
  docs docs/_build/html "$@"
echo "docs/_build/html/index.html"

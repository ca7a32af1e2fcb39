#!/usr/bin/env bash
# Makes a virtual environment of its own, installs with the test extra, runs all tests.
# Options go to pytest: ./test.sh -k epinet
set -euo pipefail
cd "$(dirname "$0")"
. tools/venv.sh
make_venv .venv-test "test"
.venv-test/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@"

#!/usr/bin/env bash
# Makes a virtual environment of its own, installs with the test extra, runs the tests
# that are not marked slow. Options go to pytest: ./test.sh -k epinet; with -m "" it
# runs all of them.
set -euo pipefail
cd "$(dirname "$0")"
. tools/venv.sh
make_venv .venv-test "test"
.venv-test/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder \
  -m "not slow" "$@"

#!/usr/bin/env bash
# Makes a virtual environment, installs the package and runs the demo.
# Options go to the demo: ./demo.sh --help
set -euo pipefail
cd "$(dirname "$0")"
. tools/venv.sh
make_venv .venv-demo "demo"
.venv-demo/bin/python -m enn.demo "$@"

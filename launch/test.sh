#!/usr/bin/env bash
# Everything that must pass: lint, format and the test suite, on the CPU.
#
#   bash launch/test.sh               all of it
#   bash launch/test.sh -k sampler    lint, then pytest with these arguments
#   bash launch/test.sh -m slow       lint, then the minutes-long tests that the suite leaves out
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bash launch/setup.sh
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m pytest -n 2 --dist loadgroup "$@"

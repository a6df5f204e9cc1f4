#!/usr/bin/env bash
# Runs the tests in .venv, which is made or completed first (scripts/setup.sh --test): a few minutes on two
# cores. Arguments go to pytest, paths relative to the repository: scripts/test.sh tests/data/test_tasks.py -k
# header
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --test
exec .venv/bin/python -m pytest -q "$@"

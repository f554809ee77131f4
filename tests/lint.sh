#!/usr/bin/env bash
# Checks style and types: ruff and pyright, with their settings in pyproject.toml.
#
#   bash tests/lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."

bash local/setup_env.sh
export PATH=$PWD/.venv/bin:$PATH PYRIGHT_PYTHON_IGNORE_WARNINGS=1
ruff check .
ruff format --check .
pyright --pythonpath .venv/bin/python

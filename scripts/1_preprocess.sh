#!/usr/bin/env bash
# Stage 1: TSV files -> OFRecord files with a prototype score for every example.
# 8,000 reviews of 128 tokens take a few minutes with MiniLM on two cores. Any flag can be set from outside: SEQ_LENGTH=64 scripts/1_...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: $PYTHON is missing: run 'bash scripts/setup.sh', or name a Python: PYTHON=python3 $0" >&2; exit 2; }
TASK_NAME=${TASK_NAME:-senti}
DATA_DIR=${DATA_DIR:-data/SENTI}
MODEL=${MODEL:-models/MiniLM}          # config.json, model.safetensors, vocab.txt
SEQ_LENGTH=${SEQ_LENGTH:-128}
SEED=${SEED:-42}

exec "$PYTHON" preprocess.py --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --model_load_dir "$MODEL" \
    --seq_length "$SEQ_LENGTH" --seed "$SEED" --resave_ofrecord

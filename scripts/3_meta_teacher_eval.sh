#!/usr/bin/env bash
# Stage 3: the best snapshot of $TEACHER_RUN -> the teacher's knowledge of every training example, beside the records.
# 6,480 reviews of 128 tokens take about 3 minutes with MiniLM on two cores, and 430 MB of disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: $PYTHON is missing: run 'bash scripts/setup.sh', or name a Python: PYTHON=python3 $0" >&2; exit 2; }
TASK_NAME=${TASK_NAME:-senti}
DATA_DIR=${DATA_DIR:-data/SENTI}
TEACHER_RUN=${TEACHER_RUN:-output/$TASK_NAME-teacher}
SEQ_LENGTH=${SEQ_LENGTH:-128}
SEED=${SEED:-42}

TEACHER=$TEACHER_RUN/$("$PYTHON" scripts/best.py "$TEACHER_RUN")
exec "$PYTHON" meta_teacher_eval.py --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --model_load_dir "$TEACHER" \
    --seq_length "$SEQ_LENGTH" --seed "$SEED"

#!/usr/bin/env bash
# Stage 2: OFRecord files -> a meta-teacher in $TEACHER_RUN. A run that was stopped goes on from its last snapshot.
# An epoch of 6,480 reviews of 128 tokens takes about 5 to 6 minutes with MiniLM on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: $PYTHON is missing: run 'bash scripts/setup.sh', or name a Python: PYTHON=python3 $0" >&2; exit 2; }
TASK_NAME=${TASK_NAME:-senti}
DATA_DIR=${DATA_DIR:-data/SENTI}
MODEL=${MODEL:-models/MiniLM}
TEACHER_RUN=${TEACHER_RUN:-output/$TASK_NAME-teacher}
SEQ_LENGTH=${SEQ_LENGTH:-128}
SEED=${SEED:-42}
TEACHER_EPOCHS=${TEACHER_EPOCHS:-3}
BATCH_SIZE=${BATCH_SIZE:-24}
TEACHER_LEARNING_RATE=${TEACHER_LEARNING_RATE:-5e-5}
EVAL_EVERY=${EVAL_EVERY:-135}          # steps

[ ! -e "$TEACHER_RUN/results.json" ] || { echo "$TEACHER_RUN holds a finished run, which is used: remove it, or name another TEACHER_RUN, to train anew"; exit; }
exec "$PYTHON" meta_teacher.py --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --model_load_dir "$MODEL" --model_save_dir "$TEACHER_RUN" --resume \
    --seq_length "$SEQ_LENGTH" --seed "$SEED" --num_epochs "$TEACHER_EPOCHS" --batch_size_per_device "$BATCH_SIZE" \
    --learning_rate "$TEACHER_LEARNING_RATE" --eval_every_step_num "$EVAL_EVERY" --do_train --do_eval

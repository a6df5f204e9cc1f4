#!/usr/bin/env bash
# Stage 4: the teacher's knowledge + a BERT to start from -> a student in $STUDENT_RUN. A run that was stopped goes on.
# An epoch of 6,480 reviews of 128 tokens takes about 3 to 4 minutes with 3 layers of MiniLM on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || { echo "error: $PYTHON is missing: run 'bash scripts/setup.sh', or name a Python: PYTHON=python3 $0" >&2; exit 2; }
TASK_NAME=${TASK_NAME:-senti}
DATA_DIR=${DATA_DIR:-data/SENTI}
TEACHER_RUN=${TEACHER_RUN:-output/$TASK_NAME-teacher}
STUDENT_MODEL=${STUDENT_MODEL:-models/MiniLM}
STUDENT_LAYERS=${STUDENT_LAYERS:-3}    # evenly spaced ones of STUDENT_MODEL
STUDENT_RUN=${STUDENT_RUN:-output/$TASK_NAME-student}
SEQ_LENGTH=${SEQ_LENGTH:-128}
SEED=${SEED:-42}
STUDENT_EPOCHS=${STUDENT_EPOCHS:-4}
BATCH_SIZE=${BATCH_SIZE:-24}
STUDENT_LEARNING_RATE=${STUDENT_LEARNING_RATE:-1e-4}
ATTENTION_WEIGHT=${ATTENTION_WEIGHT:-0.1}  # raw scores are large: at 1 this term is ten times all others together
EVAL_EVERY=${EVAL_EVERY:-135}          # steps

[ ! -e "$STUDENT_RUN/results.json" ] || { echo "$STUDENT_RUN holds a finished run, which is used: remove it, or name another STUDENT_RUN, to train anew"; exit; }
TEACHER=$TEACHER_RUN/$("$PYTHON" scripts/best.py "$TEACHER_RUN")
exec "$PYTHON" meta_distill.py --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --student_model "$STUDENT_MODEL" \
    --student_layers "$STUDENT_LAYERS" --teacher_model "$TEACHER" --model_save_dir "$STUDENT_RUN" --resume \
    --seq_length "$SEQ_LENGTH" --seed "$SEED" --num_epochs "$STUDENT_EPOCHS" --batch_size_per_device "$BATCH_SIZE" \
    --learning_rate "$STUDENT_LEARNING_RATE" --attention_loss_weight "$ATTENTION_WEIGHT" --eval_every_step_num "$EVAL_EVERY" --do_train --do_eval

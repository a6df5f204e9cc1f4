#!/usr/bin/env bash
# From a fresh clone to a distilled student: installs, fetches a small real data set (VADER's rated sentences
# of four domains) and a real pretrained model (MiniLM), runs the four stages, prints a table. A little over
# four minutes on two cores after 2.4 GB of downloads. All is used again: remove output/demo-* to train anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=.venv/bin/python TASK_NAME=demo DATA_DIR=data/DEMO
export MODEL=models/MiniLM
export TEACHER_RUN=output/demo-teacher STUDENT_RUN=output/demo-student
export SEQ_LENGTH=${SEQ_LENGTH:-64} BATCH_SIZE=${BATCH_SIZE:-24} EVAL_EVERY=${EVAL_EVERY:-63}
export TEACHER_EPOCHS=${TEACHER_EPOCHS:-2} STUDENT_EPOCHS=${STUDENT_EPOCHS:-3}

say() { printf '\n== %s\n' "$*"; }

say "setting up .venv"
bash scripts/setup.sh
say "fetching the data set and the pretrained model"
$PYTHON -m data.prepare.fetch --model "$MODEL" --data_dir "$DATA_DIR" ${DEMO_SIZES:-}
say "stage 1 of 4: records and prototype scores"
bash scripts/1_preprocess.sh
say "stage 2 of 4: the meta-teacher"
bash scripts/2_meta_teacher.sh
say "stage 3 of 4: what the teacher knows"
bash scripts/3_meta_teacher_eval.sh
say "stage 4 of 4: the student"
bash scripts/4_meta_distill.sh
say "accuracy on test in percent"
$PYTHON -m scripts.summary "$TEACHER_RUN" "$STUDENT_RUN"

#!/usr/bin/env bash
# Stage 2: OFRecord files -> a meta-teacher in $TEACHER_RUN. 5 to 6 minutes for an epoch of 6,480 reviews of
# 128 tokens with MiniLM on two cores. Further flags go to meta_teacher.py. A run that was stopped goes on
# from its last snapshot.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

TEACHER_EPOCHS=${TEACHER_EPOCHS:-3}
TEACHER_LEARNING_RATE=${TEACHER_LEARNING_RATE:-5e-5}

use_finished_run "$TEACHER_RUN" TEACHER_RUN
exec "$PYTHON" meta_teacher.py \
    --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --model_load_dir "$MODEL" \
    --model_save_dir "$TEACHER_RUN" --seq_length "$SEQ_LENGTH" --seed "$SEED" --num_epochs "$TEACHER_EPOCHS" \
    --batch_size_per_device "$BATCH_SIZE" --learning_rate "$TEACHER_LEARNING_RATE" \
    --eval_every_step_num "$EVAL_EVERY" --do_train --do_eval --resume "$@"

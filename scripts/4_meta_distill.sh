#!/usr/bin/env bash
# Stage 4: the teacher's knowledge -> a student in $STUDENT_RUN, which starts from layers of the teacher. 3 to
# 4 minutes for an epoch of 6,480 reviews of 128 tokens with 3 layers of MiniLM on two cores. Further flags go
# to meta_distill.py. A run that was stopped goes on from its last snapshot.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

STUDENT_MODEL=${STUDENT_MODEL:-$TEACHER_RUN}    # what the student starts from; $MODEL: not fine-tuned yet
STUDENT_LAYERS=${STUDENT_LAYERS:-3}             # evenly spaced ones of STUDENT_MODEL
STUDENT_EPOCHS=${STUDENT_EPOCHS:-6}
STUDENT_LEARNING_RATE=${STUDENT_LEARNING_RATE:-2e-4}

[[ " $* " == *" --calibrate "* ]] || use_finished_run "$STUDENT_RUN" STUDENT_RUN  # calibrated afterwards, too
exec "$PYTHON" meta_distill.py \
    --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --student_model "$STUDENT_MODEL" \
    --student_layers "$STUDENT_LAYERS" --teacher_model "$TEACHER_RUN" --model_save_dir "$STUDENT_RUN" \
    --seq_length "$SEQ_LENGTH" --seed "$SEED" --num_epochs "$STUDENT_EPOCHS" \
    --batch_size_per_device "$BATCH_SIZE" --learning_rate "$STUDENT_LEARNING_RATE" \
    --eval_every_step_num "$EVAL_EVERY" \
    --do_train --do_eval --resume "$@"

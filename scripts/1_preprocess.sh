#!/usr/bin/env bash
# Stage 1: TSV files -> OFRecord files with a prototype score for every example. A few minutes for 8,000
# reviews of 128 tokens with MiniLM on two cores. Further flags go to preprocess.py.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

exec "$PYTHON" preprocess.py \
    --task_name "$TASK_NAME" --data_dir "$DATA_DIR" --model_load_dir "$MODEL" \
    --seq_length "$SEQ_LENGTH" --seed "$SEED" --resave_ofrecord "$@"

# Read by the scripts of this folder: goes to the repository's folder, to which all paths are relative, and
# sets what several stages share. Each can be set from outside: SEQ_LENGTH=64 bash scripts/1_preprocess.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TASK_NAME=${TASK_NAME:-senti}
DATA_DIR=${DATA_DIR:-data/SENTI}
MODEL=${MODEL:-models/MiniLM}                           # config.json, model.safetensors, vocab.txt
TEACHER_RUN=${TEACHER_RUN:-output/$TASK_NAME-teacher}   # the run folder of stage 2
STUDENT_RUN=${STUDENT_RUN:-output/$TASK_NAME-student}   # the run folder of stage 4
SEQ_LENGTH=${SEQ_LENGTH:-128}                           # tokens; a longer text is cut
SEED=${SEED:-42}
BATCH_SIZE=${BATCH_SIZE:-24}                            # examples of a training step
EVAL_EVERY=${EVAL_EVERY:-135}                           # steps from one evaluation on dev to the next

PYTHON=${PYTHON:-.venv/bin/python}
if ! command -v "$PYTHON" >/dev/null; then
    echo "error: $PYTHON is missing: run 'bash scripts/setup.sh', or name a Python: PYTHON=python3 $0" >&2
    exit 2
fi

# Ends the script where run folder $1, which the variable $2 names, holds a finished run.
use_finished_run() {
    if [ -e "$1/results.json" ]; then
        echo "$1 holds a finished run, which is used: remove it, or name another $2, to train anew"
        exit
    fi
}

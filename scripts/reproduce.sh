#!/usr/bin/env bash
# Trains rows of the paper's table over several seeds and writes results/<task>.md, .csv and plots (--help
# lists the flags). By default the demo's data, the group `table` and five seeds: 115 training runs and 10 GB
# of disk. With --train_example_num 400 and 3 epochs it took 53 machine minutes; all 3,000 examples are
# estimated at 3 hours on two cores. To look first, or for fewer rows:
#   scripts/reproduce.sh --dry_run
#   scripts/reproduce.sh --rows hard,mixed,meta,meta-logits,meta-full --seeds 1,2,3
# Stop it with Ctrl-C whenever you like: the same command goes on. --collect makes tables of what is finished.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

exec "$PYTHON" -m scripts.reproduce "$@"

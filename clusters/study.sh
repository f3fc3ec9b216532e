#!/usr/bin/env bash
# Runs a study, or goes on with it where it has been begun: what a job that is tried again has as its command.
#
#   bash clusters/study.sh --name mine --space spaces/vit_to_mlp.py --storage s3://… …
#
# Exit codes are those of search/run.py.
cd "$(dirname "$0")/.." || exit
python search/run.py "$@"
code=$?
if [ "$code" = 2 ]; then # bad input, or the study exists; with --resume the former is refused again
    python search/run.py "$@" --resume
    code=$?
fi
exit "$code"

#!/usr/bin/env bash
# Runs a study, or goes on with it where it has been begun: what a job that is tried again has as its command.
#
#   bash clusters/study.sh --name mine --space spaces/vit_to_mlp.py --storage s3://… …
#
# Exit codes are those of search/run.py.
cd "$(dirname "$0")/.." || exit
LEASE_S=90 # a try whose head was lost seems to be at the study still, until a minute after its last sign

said=$(mktemp)
trap 'rm -f "$said"' EXIT
run() { # the copy of the errors outlives a signal to stop, so that the study can end well
    python search/run.py "$@" 2> >(trap '' INT TERM && exec tee "$said" >&2)
    code=$?
    wait $!
}

run "$@"
if [ "$code" = 2 ] && grep -q " exists in " "$said"; then
    run "$@" --resume
    while [ "$code" = 2 ] && grep -q " is being run " "$said" && [ "$SECONDS" -lt "$LEASE_S" ]; do
        sleep 10
        run "$@" --resume
    done
fi
exit "$code"

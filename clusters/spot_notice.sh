#!/usr/bin/env bash
# Tells Ray when the cloud takes this spot node back, so that its trials save and leave in time. Runs on each worker.
#
#   bash spot_notice.sh aws|gcp HEAD:PORT
#
# AWS warns two minutes before, GCP half a minute. METADATA is the metadata server's address; tests put one of their own.
set -u
cloud=$1
export RAY_ADDRESS=$2 # where Ray looks for the node that this is

noticed() {
    if [ "$cloud" = aws ]; then
        key=$(curl -sf -m 5 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$server/latest/api/token") &&
            curl -sf -m 5 -o /dev/null -H "X-aws-ec2-metadata-token: $key" "$server/latest/meta-data/spot/instance-action"
    else
        [ "$(curl -sf -m 5 -H "Metadata-Flavor: Google" "$server/computeMetadata/v1/instance/preempted")" = TRUE ]
    fi
}

case $cloud in
    aws) server=${METADATA:-http://169.254.169.254} seconds=110 ;;
    gcp) server=${METADATA:-http://metadata.google.internal} seconds=25 ;;
    *)
        echo "spot_notice.sh: '$cloud' is no cloud it knows; give aws or gcp" >&2
        exit 2
        ;;
esac
until noticed; do sleep 5; done
until ray drain-node --address "$RAY_ADDRESS" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "the cloud takes this spot node back" --deadline-remaining-seconds "$seconds"; do sleep 1; done

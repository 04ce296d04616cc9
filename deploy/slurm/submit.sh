#!/bin/bash
# The whole line on Slurm, each job after the one before it:
#   SRC=/data/scans OUT=/scratch/shards CONFIG=train/configs/vit_base.yaml RUN=/scratch/run DATA=/data/labelled \
#       deploy/slurm/submit.sh [section.key=value ...]
# TEACHER_CONFIG=train/configs/salt_stage1.yaml pretrains a teacher first, in RUN-teacher, with the same overrides.
# SLICES: of the sharding array (64). SHARDS_ARGS, PROBE_ARGS: options of us-jepa, such as "--pixels public".
# SHARDS_SBATCH, PRETRAIN_SBATCH, PROBE_SBATCH: options of sbatch, such as "--nodes=4". For all jobs alike, sbatch reads
# SBATCH_ACCOUNT, SBATCH_PARTITION and so on. BIN: of the virtual environment, on every node (.venv/bin).
# Prints a line per job: its name and number.
set -euo pipefail
for name in SRC OUT CONFIG RUN DATA; do
    [[ -n ${!name-} ]] || {
        echo "submit.sh: $name is not set; see the first lines of $0" >&2
        exit 2
    }
done
[[ $SRC == *://* ]] || SRC=$(realpath "$SRC")
[[ $OUT == *://* ]] || OUT=$(realpath -m "$OUT")
[[ -z ${TEACHER_CONFIG-} ]] || TEACHER_CONFIG=$(realpath "$TEACHER_CONFIG")
CONFIG=$(realpath "$CONFIG") RUN=$(realpath -m "$RUN") DATA=$(realpath "$DATA")
cd "$(dirname "$0")/../.." # where jobs run, and the packages are
read -ra shards_args <<<"${SHARDS_ARGS-}"
read -ra probe_args <<<"${PROBE_ARGS-}"
read -ra shards_sbatch <<<"${SHARDS_SBATCH-}"
read -ra pretrain_sbatch <<<"${PRETRAIN_SBATCH-}"
read -ra probe_sbatch <<<"${PROBE_SBATCH-}"

last=
submit() { # name, dependency, arguments of sbatch
    local name=$1 dependency=$2
    shift 2
    last=$(sbatch --parsable --kill-on-invalid-dep=yes ${dependency:+--dependency="$dependency"} "$@")
    echo "$name $last"
}

submit shards "" "${shards_sbatch[@]}" --array="0-$((${SLICES:-64} - 1))" \
    deploy/slurm/shards.sbatch "$SRC" "$OUT" "${shards_args[@]}"
# after any end of the slices: what a failed one has left is done here
submit merge "afterany:$last" "${shards_sbatch[@]}" deploy/slurm/shards.sbatch "$SRC" "$OUT" "${shards_args[@]}"
data=("data.shards=[$OUT]" "$@")
if [[ -n ${TEACHER_CONFIG-} ]]; then
    submit teacher "afterok:$last" "${pretrain_sbatch[@]}" deploy/slurm/pretrain.sbatch \
        --config "$TEACHER_CONFIG" "${data[@]}" "run.dir=$RUN-teacher"
    data+=("teacher.source=$RUN-teacher")
fi
submit pretrain "afterok:$last" "${pretrain_sbatch[@]}" deploy/slurm/pretrain.sbatch \
    --config "$CONFIG" "${data[@]}" "run.dir=$RUN"
submit probe "afterok:$last" "${probe_sbatch[@]}" deploy/slurm/probe.sbatch "$RUN" --data "$DATA" \
    "${probe_args[@]}"

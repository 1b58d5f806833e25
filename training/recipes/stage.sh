# Read by each recipe's train.sh: what runs one of its stages.
# WORK=FOLDER: where `runs` is, in the place of the checkout. ARGS: flags for every stage, ARGS_unet: for the stage unet.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
recipe=$(basename "$folder")
export PYTHONPATH="$folder/../../..${PYTHONPATH:+:$PYTHONPATH}"
cd "${WORK:-$folder/../../..}"
python=${PYTHON:-python}
export OMP_NUM_THREADS=1

stage() { # MODULE NAME [LAUNCHER...]: one stage, unless its result is there; what is written last is its manifest
    local module=$1 name=$2 own="ARGS_$2"
    shift 2
    if [ -e "runs/$recipe/$name/model/manifest.json" ]; then
        echo "$name: done before"
    else
        echo "$name"
        # shellcheck disable=SC2086  # flags are several words
        "$python" "$@" -m "training.$module" --config "$folder/$name.yaml" ${ARGS:-} ${!own:-}
    fi
}

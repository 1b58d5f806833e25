#!/usr/bin/env bash
# Replays the bundled model from the fonts package to the shipped weights. Every stage resumes: run it again after a stop.
# On two CPU cores it takes some three hours; each stage's report and metrics lie in runs/emoji/STAGE.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python}
recipe() { echo "training/recipes/emoji/$1.yaml"; }
export OMP_NUM_THREADS=1

# Two chains that need nothing of each other, one core each.
"$python" -m training.autoencoder --config "$(recipe autoencoder)" &
"$python" -m training.contrast --config "$(recipe teacher)"
"$python" -m training.distill --config "$(recipe distill)"
"$python" -m training.contrast --config "$(recipe contrast)"
wait %1

# Two processes of one thread are faster on two cores than one process of two threads.
two=("$python" -m torch.distributed.run --standalone --nproc-per-node 2)
"${two[@]}" -m training.text_to_image --config "$(recipe unet)"

# The order's own step, at small size: an English UNet, its tower swapped, keys and values aligned.
"$python" -m training.text_to_image --config "$(recipe english_unet)"
"$python" -m training.text_to_image --config "$(recipe concept_alignment)"

"$python" -m training.package

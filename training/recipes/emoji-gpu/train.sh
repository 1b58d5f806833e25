#!/usr/bin/env bash
# The emoji model at 128 px on one GPU: all emoji, scenes of up to four, grounds by their colour's name.
# Every stage resumes: run it again after a stop. The result is runs/emoji-gpu/model.
source "$(dirname "$0")/../stage.sh"

stage autoencoder autoencoder
stage contrast teacher
stage distill distill
stage contrast contrast
stage contrast names
stage text_to_image unet
"$python" -m training.package --config "$folder/package.yaml"

#!/usr/bin/env bash
# The papers' claims in a world of 136 emoji: every stage from nothing but the shipped autoencoder, and the figures of
# bench.rehearsal. Resumes: run it again after a stop. Some three hours on two CPU cores; everything lies in runs/rehearsal.
# A dry run: SECONDS_EACH=4 ARGS="--run.max-train-steps 2" FIGURES="--emoji 2 --languages th --steps 2 --scenes 20"
source "$(dirname "$0")/../stage.sh"
trap wait EXIT # where one chain fails, the other comes to its end

pair() { stage "$1" "$2" -m torch.distributed.run --standalone --nproc-per-node 2; }

equal() { # MODULE RECIPE: for as long by the clock as the others, told from the last five of ten steps of its own
    local pace=runs/rehearsal/pace/$2 steps
    if [ ! -e "$pace/model/manifest.json" ]; then
        # shellcheck disable=SC2086
        "$python" -m "training.$1" --config "$folder/$2.yaml" ${ARGS:-} \
            --output-dir "$pace" --run.max-train-steps 10 --run.log-steps 5
    fi
    steps=$("$python" -c '
import json, sys
*_, five, ten = (json.loads(line)["seconds"] for line in open(sys.argv[1]))
print(max(1, round(5 * float(sys.argv[2]) / max(0.1, ten - five))))' \
        "$pace/metrics.jsonl" "${SECONDS_EACH:-480}")
    local "ARGS_$2=--run.max-train-steps $steps"
    stage "$1" "$2"
}
# shellcheck disable=SC2086
measure() { "$python" -m bench.rehearsal "$@" ${FIGURES:-}; } # ROW…

pair contrast teacher

# Two chains of one core each.
unets() {
    stage distill student_english
    stage text_to_image english_unet
    stage text_to_image english_unet_second
}
towers() {
    stage distill student_both
    stage contrast contrast
    stage distill student_parallel
    stage distill student_both_second
    stage contrast contrast_second
    measure teacher student_english student_parallel student_both contrast > /dev/null
    measure student_both_second contrast_second > /dev/null
}
unets &
towers
wait $!

stage text_to_image swap
others() {
    equal text_to_image kv_second
    stage text_to_image quality_second
    equal adapter adapter
    measure english_unet swap kv_second quality_second adapter > /dev/null
    measure kv cross_attention lora kv_mapped quality > /dev/null
}
papers() {
    equal text_to_image kv
    equal text_to_image cross_attention
    equal text_to_image lora
    equal text_to_image kv_mapped
    stage text_to_image quality
    stage text_to_image guidance
    measure guidance_guided guidance quality_guided > /dev/null
}
others &
papers
wait $!
measure

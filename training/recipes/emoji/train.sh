#!/usr/bin/env bash
# Replays the bundled model from the fonts package to the shipped weights. Every stage resumes: run it again after a stop.
# On two CPU cores it takes an estimated seventeen hours, by the samples of the stages and their pace; each stage's report and metrics lie in runs/emoji/STAGE.
source "$(dirname "$0")/../stage.sh"

# Two chains of one core each. Both need the teacher, and the UNet can start on English while the student still learns.
pictures() { stage autoencoder autoencoder && stage autoencoder colours; }
words() { stage contrast teacher && stage distill distill; }
pictures &
words
wait $!
stage text_to_image english_unet &
stage distill distill_more
stage contrast contrast
wait $!

# Two processes of one thread each are faster on two cores than one process of two threads.
pair() {
    stage "$1" "$2" -m torch.distributed.run --standalone --nproc-per-node 2
}
pair text_to_image unet

# The second round: a teacher that tells more apart, a student that learns it in whitened coordinates, a UNet that follows.
OMP_NUM_THREADS=2 stage contrast teacher_more
pair distill distill_again
OMP_NUM_THREADS=2 stage contrast contrast_again
pair text_to_image unet_again

# The third: lists. Captions of several emoji had been one in eight, and half of them are now.
pair distill distill_lists
OMP_NUM_THREADS=2 stage contrast contrast_lists
pair text_to_image unet_lists
pair text_to_image unet_lists_more

# The fourth: the image tower, and the other languages, Arabic most, come nearer to the English that the UNet knows,
# for which it is not trained again.
stage contrast contrast_names
pair distill distill_arabic
pair contrast contrast_names_more
pair contrast contrast_names_last

# The fifth: all emoji.
stage text_to_image unet_all

# The sixth: the words beside the names, and two emoji at once, whose names the text tower tells apart.
pair distill distill_words
stage distill distill_keywords
pair contrast contrast_keywords
pair text_to_image unet_words

# The seventh: more of both.
stage distill distill_keywords_more
stage distill distill_keywords_last
stage distill distill_strangers
stage contrast contrast_strangers
pair text_to_image unet_pairs

# The eighth: a UNet that learnt on a GPU, and more keywords.
stage text_to_image unet_gpu
stage distill distill_all_words
stage text_to_image unet_words_last

# The ninth: names that the towers hardly told from each other.
stage distill distill_apart
stage text_to_image unet_apart
stage distill distill_apart_more
stage contrast contrast_apart
stage distill distill_apart_words
stage text_to_image unet_apart_last

# The papers' own step by itself: the tower of an English UNet is swapped, keys and values follow it.
pair text_to_image english_unet_again
pair text_to_image concept_alignment

# The same swap with both frozen and a small net between them.
pair adapter adapter

"$python" -m training.package

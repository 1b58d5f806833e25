"""Small tokenizers in the layouts of the published models: XLM-R's unigram and CLIP's byte-level BPE."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer, XLMRobertaTokenizer


def train_xlmr_tokenizer(lines: Iterable[str], size: int, max_length: int = 77) -> XLMRobertaTokenizer:
    """A sentencepiece unigram model with XLM-R's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, pieces, <mask> last.

    Unlike XLM-R's it folds case (`nmt_nfkc_cf`): a small model has no words to spare for capitals.
    """
    model = learn_unigram(lines, size - 2, "nmt_nfkc_cf")  # <pad> and <mask> are ours
    pieces = [(p.piece, p.score) for p in model.pieces if p.type == p.NORMAL]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    return XLMRobertaTokenizer(
        vocab=[*special, *pieces, ("<mask>", 0.0)],
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap,
        model_max_length=max_length,
    )


def learn_unigram(lines: Iterable[str], size: int, normalization: str) -> Any:
    """sentencepiece's own description of a unigram model of up to `size` pieces, learnt from `lines`."""
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=f"{folder}/unigram",
            model_type="unigram",
            vocab_size=size,
            character_coverage=0.9999,
            normalization_rule_name=normalization,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        # protobuf makes the class as the module is imported, where a type checker does not look
        model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
        model.ParseFromString(Path(folder, "unigram.model").read_bytes())
    return model


def train_clip_tokenizer(lines: Iterable[str], size: int, max_length: int = 77) -> CLIPTokenizer:
    """CLIP's byte-level BPE, learnt from `lines`: <|startoftext|> 0, <|endoftext|> 1, which also pads."""
    learner = CLIPTokenizer()._tokenizer
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # A sign that no line holds would become the unknown token, which in CLIP is the end of the text.
    signs = [chr(code) for code in range(33, 127)]
    learner.train_from_iterator([*lines, *signs], trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=max_length)

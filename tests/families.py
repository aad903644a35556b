"""A model folder of every family as people bring it, only small: an encoder of random weights, and a tokenizer of the
kind that the family has."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    CamembertTokenizerFast,
    DebertaV2TokenizerFast,
    DistilBertTokenizerFast,
    ElectraTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    XLMRobertaTokenizerFast,
)

from tests.conftest import sentences

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_ROBERTA = _SIZES | {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# Its layers see all, two neighbours to either side, all; the head reads the mean.
_MODERN = _SIZES | {
    "local_attention": 4, "global_attn_every_n_layers": 2, "classifier_pooling": "mean",
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2,
}  # fmt: skip
_DEBERTA = _SIZES | {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
_MODERN_TOKENIZER = {
    "model_input_names": ["input_ids", "attention_mask"], "pad_token": "<pad>", "unk_token": "<unk>",
    "cls_token": "<s>", "sep_token": "</s>",
}  # fmt: skip


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def sentence_piece() -> Tokenizer:
    """The class has its own ways around the vocabulary."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=BERT_SPECIAL, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=BERT_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _texts() -> list[str]:
    return [text for text, _ in sentences(240, 0)]


# family -> its sizes, what makes its tokenizer's file, and the class that reads it
MADE_OF: dict[str, tuple[dict, Callable[[], Tokenizer], Callable[..., PreTrainedTokenizerFast]]] = {
    "roberta": (_ROBERTA, byte_level, RobertaTokenizerFast),
    "xlm-roberta": (_ROBERTA, unigram, XLMRobertaTokenizerFast),
    "camembert": (_ROBERTA, unigram, CamembertTokenizerFast),
    "electra": (_SIZES | {"embedding_size": 24}, word_piece, ElectraTokenizerFast),
    "modernbert": (_MODERN, byte_level, partial(PreTrainedTokenizerFast, **_MODERN_TOKENIZER)),
    "deberta-v2": (_DEBERTA, sentence_piece, DebertaV2TokenizerFast),
    "distilbert": ({"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}, word_piece, DistilBertTokenizerFast),
}


def write_model(family: str, folder: Path) -> Path:
    """A bare encoder, as `train --model` takes it."""
    sizes, make, kind = MADE_OF[family]
    folder.mkdir(parents=True, exist_ok=True)
    make().save(str(folder / "tokenizer.json"))
    tokenizer = kind(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), max_position_embeddings=66, **sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder

"""A bundle of random weights with chosen gates forced open, for measurements that need no training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hadskip_export.exporters.build import Source, write_bundle
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier

BERT_BASE = EncoderConfig(
    vocab_size=30522,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    type_vocab_size=2,
    labels=("negative", "positive"),
)
WORD = "word"


def text_of(tokens: int) -> str:
    """A text of exactly so many tokens, special tokens included."""
    return " ".join([WORD] * (tokens - 2))


def write_random_bundle(out: Path, open_layers: tuple[int, ...], config: EncoderConfig = BERT_BASE) -> None:
    """Writes a bundle whose gates, all of them still computed, run just `open_layers` (from 1)."""
    torch.manual_seed(0)
    full = Classifier(config).init_weights()
    model = GatedClassifier(Classifier(config).init_weights())
    for index, gate in enumerate(model.gates, start=1):
        torch.nn.init.zeros_(gate.logits.weight)
        margin = 1.0 if index in open_layers else -1.0
        gate.logits.bias.data = torch.tensor([margin, 0.0])
    tokenizer = out.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    texts = [text_of(length) for length in (8, 64, 128)]
    write_bundle(
        Source(model, full, tokenizer, 512, 0.0, len(open_layers), "random", "accuracy", texts), out, golden=texts
    )


def write_tokenizer(file: Path) -> None:
    """A tokenizer of one word."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, WORD: 4}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(file))

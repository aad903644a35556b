"""A bundle of random weights, for measurements that need no training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hadskip_export.data.text import Text
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import Source, write_bundle
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.points import Point
from hadskip_export.verification.parity import ParityReport

WORD = "word"


def text_of(tokens: int) -> str:
    """A text of exactly so many tokens, special tokens included."""
    return " ".join([WORD] * (tokens - 2))


def write_random_bundle(out: Path, config: EncoderConfig, plan: EnginePlan) -> ParityReport:
    """Writes a bundle of a size, checked like any other. Margins and label are far from a tie.

    Raises:
        EngineError: this machine cannot run the engine.
    """
    plan.check_measurable()
    torch.manual_seed(0)
    with torch.no_grad():
        full = Classifier(config).init_weights()
        model = GatedClassifier(Classifier(config).init_weights())
        for head in (full.head, model.classifier.head):
            head.classifier.bias[0] = 10.0
        for gate in model.gates:
            gate.logits.weight.zero_()
            gate.logits.bias.copy_(torch.tensor([1.0, 0.0]))
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = out.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    texts: list[Text] = [text_of(length) for length in (8, 16, min(64, config.most_tokens))]
    point = Point(config.num_layers, (0.0,) * config.num_layers, "random weights", config.num_layers)
    source = Source(model, full, tokenizer, config.most_tokens, (point,), point.budget, "random", "accuracy", texts)
    report = write_bundle(source, out, plan, golden=texts)
    assert report is not None
    return report


def write_tokenizer(file: Path) -> None:
    """A tokenizer of one word."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, WORD: 4}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(file))

"""A bundle of random weights, for measurements that need no training."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hadskip_export.data.text import Text
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import Source, write_bundle
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.exits import ExitClassifier, Student
from hadskip_export.modeling.gated import Gate, GatedClassifier
from hadskip_export.routing.points import Point
from hadskip_export.verification.parity import ParityReport

WORD = "word"


def text_of(tokens: int) -> str:
    """A text of exactly so many tokens, special tokens included."""
    return " ".join([WORD] * (tokens - 2))


def write_random_bundle(
    out: Path, config: EncoderConfig, plan: EnginePlan, make: Callable[[Classifier], Student] = GatedClassifier
) -> ParityReport:
    """Writes a bundle of a size, checked like any other. Margins and label are far from a tie.

    Args:
        make: of a body, what is to be served: gates, exits or a fixed route.

    Raises:
        EngineError: this machine cannot run the engine.
    """
    plan.check_measurable()
    torch.manual_seed(0)
    with torch.no_grad():
        full, body = Classifier(config).init_weights(), Classifier(config).init_weights()
        for head in (full.head, body.head):
            head.classifier.bias[0] = 10.0
        model = make(body)
        for gate in model.gates:
            if isinstance(gate, Gate):
                gate.logits.weight.zero_()
                gate.logits.bias.copy_(torch.tensor([1.0, 0.0]))
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = out.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    texts: list[Text] = [text_of(length) for length in (8, 16, min(64, config.most_tokens))]
    below_all = -1.0 if isinstance(model, ExitClassifier) else 0.0
    thresholds = (below_all,) * config.num_layers if model.fixed_route is None else ()
    point = Point(config.num_layers, thresholds, "random weights", config.num_layers)
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

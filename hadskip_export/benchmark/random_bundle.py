"""A bundle of random weights, for measurements that need no training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from hadskip_export.exporters.compile import check_measurable, resolve_single
from hadskip_export.exporters.write import Source, write_bundle
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.runtime.bundle import RouterInfo
from hadskip_export.runtime.engines import GateLayout, Single, engine_class
from hadskip_export.runtime.tokenization import Text
from hadskip_export.verification.parity import ParityReport

WORD = "word"


def text_of(tokens: int) -> str:
    """A text of exactly so many tokens, special tokens included."""
    return " ".join([WORD] * (tokens - 2))


def write_random_bundle(
    out: Path,
    config: EncoderConfig,
    engine: str = "ort",
    precision: str = "fp32",
    gates: GateLayout | None = None,
    single: Single | None = None,
) -> ParityReport:
    """Writes a bundle of a size, checked like any other.

    All its layers have the same weights, and so have its gates: they share a file (but for the last layer), which every
    engine loads for itself, so a layer costs what it would cost, and only one of them is to be exported. Full BERT has
    layers of its own, and so has a model that calls run as one file: there the engine would keep equal weights
    once. Margins and label are far from a tie.

    Raises:
        BundleError: there is nothing to guess.
        EngineError: see `check_measurable`.
    """
    check_measurable(engine, precision, gates, single)
    how, _ = resolve_single(single, engine, precision, RouterInfo("gates", 0.0, config.num_layers), None)
    alike = engine_class(engine).reads != "onnx" or how == "chain"
    torch.manual_seed(0)
    with torch.no_grad():
        full = Classifier(config).init_weights()
        model = GatedClassifier(Classifier(config).init_weights())
        for head in (full.head, model.classifier.head):
            head.classifier.bias[0] = 10.0
        for gate in model.gates:
            gate.logits.weight.zero_()
            gate.logits.bias.copy_(torch.tensor([1.0, 0.0]))
    if alike:
        model.classifier.layers = nn.ModuleList([model.classifier.layers[0]] * config.num_layers)
        model.gates = nn.ModuleList([model.gates[0]] * config.num_layers)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = out.parent / "tokenizer.json"
    write_tokenizer(tokenizer)
    texts: list[Text] = [text_of(length) for length in (8, 16, min(64, config.max_positions))]
    source = Source(model, full, tokenizer, config.max_positions, 0.0, config.num_layers, "random", "accuracy", texts)
    report = write_bundle(source, out, engine, precision, gates, golden=texts, single=single)
    assert report is not None
    return report


def write_tokenizer(file: Path) -> None:
    """A tokenizer of one word."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, WORD: 4}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(file))

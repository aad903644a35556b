"""A family of encoders: how its checkpoints say what this package's one encoder has to do.

A family computes nothing. What it has that others have not is a value of `EncoderConfig`, which encoder.py knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hadskip_export.data.problems import RANKING, SINGLE, ProblemType
from hadskip_export.modeling.encoder import ACTIVATIONS, Classifier, EncoderConfig

# Ours -> Hugging Face's, in the configurations of most families.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout",
}
# One layer of BERT and of all that are named after it. The three attention projections are one matrix in ours.
LAYER = {
    "query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}
EMBEDDINGS = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.segment.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm": "embeddings.LayerNorm",
}
KINDS = ("weight", "bias")


def nothing_refused(_config: Any) -> str | None:
    """For families that have no variants of their own."""
    return None


def nothing_more(_config: Any) -> dict[str, Any]:
    """For families of which `sizes` and `values` tell all."""
    return {}


@dataclass(frozen=True)
class Family:
    """
    Args:
        model_type: its name in config.json.
        title: its name for people, and the beginning of its classes' names in `transformers`.
        encoder: ours -> theirs, the parts outside the layers, as a bare encoder has them.
        prefix: what these and the layers' names begin with in a classifier.
        head: the same for what a classifier has beside its encoder.
        layers: where the layers are in the encoder.
        layer: ours -> theirs within a layer, in the order in which ours has them stacked.
        unused: beginnings of names of what no classifier computes with, such as the heads of pretraining.
        sizes: fields of `EncoderConfig` -> attributes of their configuration.
        values: fields that are the same in all models of the family.
        why_refused: what of a configuration nobody here computes, in words; None of one that is all understood.
        read_more, written_more: the other fields of `EncoderConfig`, such as what differs from layer to layer, from
            their configuration and back.
    """

    model_type: str
    title: str
    prefix: str
    encoder: Mapping[str, str]
    head: Mapping[str, str]
    unused: tuple[str, ...]
    layers: str = "encoder.layer"
    layer: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LAYER)
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    values: Mapping[str, Any] = field(default_factory=dict)
    why_refused: Callable[[Any], str | None] = nothing_refused
    read_more: Callable[[Any], dict[str, Any]] = nothing_more
    written_more: Callable[[EncoderConfig], dict[str, Any]] = nothing_more

    def read(self, config: Any, labels: tuple[str, ...], problem_type: ProblemType = SINGLE) -> EncoderConfig:
        """Of a configuration of `transformers`."""
        sizes = {ours: getattr(config, theirs) for ours, theirs in self.sizes.items()}
        more = {**self.values, **self.read_more(config)}
        return EncoderConfig(family=self.model_type, labels=labels, problem_type=problem_type, **sizes, **more)

    def written(self, config: EncoderConfig) -> dict[str, Any]:
        """config.json of a classifier, as `transformers` has it."""
        from transformers import AutoConfig

        labels = config.labels
        sizes = {theirs: getattr(config, ours) for ours, theirs in self.sizes.items()}
        return AutoConfig.for_model(
            self.model_type,
            architectures=[f"{self.title}ForSequenceClassification"],
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=None if config.problem_type == RANKING else config.problem_type,
            **sizes,
            **self.written_more(config),
        ).to_dict()

    def refused(self, config: Any) -> str | None:
        """What about a configuration is out of scope, in words, or None."""
        sizes: dict[str, Any] = {ours: getattr(config, theirs, None) for ours, theirs in self.sizes.items()}
        if sizes["activation"] not in ACTIVATIONS:
            return f"the activation {sizes['activation']!r}"
        if sizes["num_layers"] < 1 or sizes["hidden_size"] % sizes["num_heads"]:
            return f"{sizes['num_layers']} layers of {sizes['hidden_size']} with {sizes['num_heads']} heads"
        return self.why_refused(config)

    def names(self, config: EncoderConfig) -> dict[str, tuple[str, ...]]:
        """Parameters of ours -> the tensors of a classifier's checkpoint that are stacked to make them."""
        found: dict[str, tuple[str, ...]] = {}
        with torch.device("meta"):  # no memory, no numbers: only which parameters a model of these values has
            has = {name for name, _ in Classifier(config).named_parameters()}

        def add(ours: str, theirs: tuple[str, ...]) -> None:
            if ours.endswith(".weight"):
                found[ours] = theirs
            else:
                found.update({f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in KINDS})

        for ours, theirs in self.encoder.items():
            add(ours, (f"{self.prefix}.{theirs}",))
        for index in range(config.num_layers):
            for ours, inner in self.layer.items():
                start = f"{self.prefix}.{self.layers}.{index}"
                add(f"layers.{index}.{ours}", tuple(f"{start}.{name}" for name in inner))
        for ours, theirs in self.head.items():
            add(ours, (theirs,))
        return {ours: theirs for ours, theirs in found.items() if ours in has}

    def as_in_classifier(self, name: str) -> str:
        """The name of a bare encoder's tensor, as a classifier's checkpoint has it."""
        return f"{self.prefix}.{name}" if name.split(".")[0] in self._parts else name

    @property
    def _parts(self) -> set[str]:
        """What the names of a bare encoder's tensors begin with."""
        unused = [name.removeprefix(f"{self.prefix}.") for name in self.unused if name.startswith(f"{self.prefix}.")]
        return {name.split(".")[0] for name in (*self.encoder.values(), self.layers, *unused)}

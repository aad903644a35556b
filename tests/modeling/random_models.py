"""Models of random weights, biases and norms included, so that a weight in the wrong place shows; padded batches."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.routes import Route

CONFIG = EncoderConfig(
    vocab_size=50, hidden_size=16, num_layers=4, num_heads=2, intermediate_size=32, max_positions=24, type_vocab_size=2,
    labels=("a", "b", "c"),
)  # fmt: skip


def randomise(module: nn.Module, seed: int, std: float = 0.2) -> None:
    """Normal values around what the parameters are now (norms stay near 1, biases leave 0)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)


def random_classifier(seed: int = 0, **changes) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(replace(CONFIG, **changes)).init_weights(std=0.1)
    randomise(model, seed)
    return model.eval()


def random_gated(seed: int = 0, width: int = 8, **changes) -> GatedClassifier:
    """Gates of random weights: their margins differ from input to input and lie on both sides of 0."""
    model = GatedClassifier(random_classifier(seed, **changes), width)
    randomise(model.gates, seed + 1, std=0.7)
    return model.eval()


def random_fixed(fixed_route: Route, seed: int = 0, **changes) -> GatedClassifier:
    """A model without gates, every input of which takes `fixed_route`."""
    return GatedClassifier(random_classifier(seed, **changes), fixed_route=fixed_route).eval()


def random_batch(lengths: Sequence[int], seed: int = 0, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask, token_type_ids, int64 [b, s]; what lies in the padding is random too."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(lengths))
    ids = torch.randint(CONFIG.vocab_size, shape, generator=generator)
    types = torch.randint(CONFIG.type_vocab_size, shape, generator=generator)
    mask = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    return ids, mask, types

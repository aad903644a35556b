"""Hugging Face checkpoints in and out: configuration, weights (safetensors only), tokenizer, and the gates or exits
beside them.

What is written stays a Hugging Face checkpoint: `transformers` loads `budgets/<K>/` as a plain classifier and
ignores the gates and the exits.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hadskip_export.data.problems import MULTI, RANKING, REGRESSION, SINGLE, ProblemType
from hadskip_export.data.text import TOKENIZER_CONFIG
from hadskip_export.modeling.encoder import Classifier, EncoderConfig
from hadskip_export.modeling.exits import EXIT_KINDS, ExitClassifier, Student, go_together
from hadskip_export.modeling.families import FAMILIES, REFUSED, Family
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.criteria import CRITERIA
from hadskip_export.routing.routes import is_route
from hadskip_export.support.digests import sha256
from hadskip_export.support.errors import BundleError, DataError, first_line

HADSKIP_KEY = "hadskip"  # our section of config.json
GATES, EXITS = "gates", "exits"  # where a checkpoint of ours has theirs
SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spm.model")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
ADAPTER_FILE = "adapter_config.json"  # with it `transformers` loads an adapter, too, where peft is installed

WHAT_IS_TAKEN = f"this package takes text classifiers of {', '.join(FAMILIES)}"
READABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # a number of anything else lacks its scale
Names = Mapping[str, tuple[str, ...]]  # parameters of ours -> the tensors that are stacked to make them
CLASSIFIER = "ForSequenceClassification"  # what the name of one ends with
ADAPTERS = ("lora_", "adapter", "ia3_", "prompt_")


@dataclass(frozen=True)
class StudentSettings:
    """What config.json keeps of a student beside its weights. `width`: of its gates."""

    width: int
    threshold: float
    budget: float


def resolve_model(model: str | Path) -> Path:
    """A local model folder as it is; any other name is fetched from the Hugging Face hub.

    Raises:
        BundleError: neither a folder here nor a model on the hub.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(model), allow_patterns=HUB_FILES))
    except HFValidationError:
        raise BundleError(f"{model}: no such folder, and not the name of a model on the hub") from None
    except Exception as error:  # the hub client raises whatever its transport does
        reason = first_line(error)
        raise BundleError(f"{model}: no such folder, and the hub did not give such a model ({reason})") from error


def digest_of_model(folder: Path) -> str:
    """SHA-256 of all that is read of a model folder: names and contents."""
    files = sorted({file for pattern in HUB_FILES for file in folder.glob(pattern) if file.is_file()})
    return hashlib.sha256(json.dumps([(file.name, sha256(file)) for file in files]).encode()).hexdigest()


def longest_input(folder: Path, config: EncoderConfig) -> int:
    """Tokens that the model takes of an input: what it has positions for, or fewer where its tokenizer cuts before
    (`model_max_length`, which older versions of transformers call `max_len`).

    Raises:
        BundleError: tokenizer_config.json is no JSON object.
    """
    file = folder / TOKENIZER_CONFIG
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")).items()) if file.is_file() else {}
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"{file}: cannot be read ({first_line(error)})") from error
    known = settings.get("model_max_length", settings.get("max_len"))
    return int(known) if isinstance(known, int | float) and 1 <= known < config.most_tokens else config.most_tokens


def read_config(
    folder: Path, labels: tuple[str, ...] | None = None, problem_type: ProblemType = SINGLE
) -> EncoderConfig:
    """Reads config.json.

    Args:
        folder: the model folder, or its configuration file.
        labels: class names of the task; left out, the checkpoint must already be a classifier and brings its own.
        problem_type: what the task is, where `labels` are given.

    Raises:
        BundleError: no configuration there, or a model this package cannot skip layers of (the message says which).
    """
    from transformers import AutoConfig

    file = folder if folder.is_file() else folder / "config.json"
    if not file.is_file():
        raise BundleError(f"{folder}: no config.json there; --model takes a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(file, trust_remote_code=False)
    except Exception as error:  # transformers and its validators raise whatever they like about a bad file
        raise BundleError(f"{file}: cannot be read ({first_line(error)})") from error
    if refused := _why_refused(config):
        raise BundleError(f"{folder}: {refused} is not supported; {WHAT_IS_TAKEN}")
    if file.with_name(ADAPTER_FILE).is_file():
        raise BundleError(
            f"{file.with_name(ADAPTER_FILE)}: an adapter beside the model; merge it into the model before"
            " (merge_and_unload), or remove its files"
        )
    if labels is None:
        problem_type = _problem_type(config, folder)
        labels = label_names(config.id2label, file)
    return FAMILIES[config.model_type].read(config, labels, problem_type)


def label_names(id2label: dict[int, Any], file: Path) -> tuple[str, ...]:
    """A classifier's own, in the order of its logits; numbers and booleans as they are written."""
    names = {index: "" if name is None else str(name) for index, name in id2label.items()}
    missing = next((index for index in range(len(names)) if not names.get(index, "").strip()), None)
    if missing is not None:
        raise BundleError(f"{file}: id2label has no name for class {missing}")
    labels = tuple(names[index] for index in range(len(names)))
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise BundleError(f"{file}: id2label names two classes {twice!r}; label names must differ")
    return labels


def own_labels(folder: Path) -> tuple[str, ...] | None:
    """The class names of a model that is a classifier already; None of one that is not."""
    try:
        return read_config(folder).labels
    except BundleError:
        return None


def _why_refused(config) -> str | None:
    """What about a Hugging Face configuration is out of scope, in words, or None."""
    if config.model_type not in FAMILIES:
        reason = f" ({REFUSED[config.model_type]})" if config.model_type in REFUSED else ""
        return f"the architecture {config.model_type!r}{reason}"
    if refused := FAMILIES[config.model_type].refused(config):
        return refused
    if getattr(config, "is_decoder", False):
        return "a decoder"
    if getattr(config, "quantization_config", None):
        return "a quantised checkpoint (quantization_config)"
    if getattr(config, "auto_map", None):
        return "a model with code of its own (auto_map in config.json)"
    return None


def _problem_type(config, folder: Path) -> ProblemType:
    """What a fine-tuned model answers. `transformers` says nothing of one logit that is no regression's, and takes its
    sigmoid.

    Raises:
        BundleError: no classifier of the kind this package takes.
    """
    refused, architecture = None, next(iter(config.architectures or ()), CLASSIFIER)  # without one, the weights tell
    found: ProblemType = config.problem_type or (RANKING if config.num_labels == 1 else SINGLE)
    if config.problem_type not in (None, SINGLE, MULTI, REGRESSION):
        refused = f"problem_type {config.problem_type!r} in config.json, which transformers does not know,"
    elif found == REGRESSION and config.num_labels > 1:
        refused = f"regression to {config.num_labels} numbers"
    elif architecture.endswith(("Model", "ForPreTraining", "ForMaskedLM")):
        raise BundleError(
            f"{folder}: {architecture} has no classifier of its own; leave out --fine-tuned, and train makes one from"
            " your labels"
        )
    elif not architecture.endswith(CLASSIFIER):
        refused = f"{architecture} as a fine-tuned classifier"
    if refused:
        raise BundleError(f"{folder}: {refused} is not supported; {WHAT_IS_TAKEN}")
    return found


def load_classifier(
    folder: Path, labels: tuple[str, ...] | None = None, seed: int = 0, problem_type: ProblemType = SINGLE
) -> Classifier:
    """Loads a checkpoint of one of the families.

    Args:
        folder: a Hugging Face model folder with safetensors weights.
        labels: class names of a task to be learned: the classifier (and the pooler, if the checkpoint has none) is
            then new, drawn with `seed`, for a task of `problem_type`. Left out, the checkpoint's own classifier is
            loaded and must be there.

    Raises:
        BundleError: see `read_config`; also pickled, missing, misnamed or misshapen weights, some that are no numbers
            or need a scale, and tensors that would change the answers if anybody read them.
    """
    config = read_config(folder, labels, problem_type)
    family = FAMILIES[config.family]
    theirs = _normalise_names(_read_weights(folder), family)
    fresh = ("head.classifier", "head.pooler", "head.pooled_norm") if labels is not None else ()
    if labels is not None:
        theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("classifier.")}
    names = family.names(config)
    _check_all_read(theirs, names, family, folder, fine_tuned=labels is None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(config).init_weights()
    ours = _from_hugging_face(theirs, names, folder)
    _load_state(model, ours, folder, fresh)
    return model.eval()


def save_classifier(model: Classifier, folder: Path) -> None:
    """Writes `model` as a Hugging Face checkpoint, a `...ForSequenceClassification` of its family."""
    _save(model.config, _to_hugging_face(model), {}, folder)


def save_student(model: Student, settings: StudentSettings, folder: Path) -> None:
    """Writes a student: the Hugging Face checkpoint, its gates' or exits' weights and our section of config.json."""
    tensors = _to_hugging_face(model.classifier)
    section: dict[str, Any] = {
        "gate_width": settings.width,
        "gate_threshold": settings.threshold,
        "budget": settings.budget,
    }
    if isinstance(model, ExitClassifier):
        section |= {"exits": model.kind, "criterion": model.criterion}
        if model.gates:
            section["gated"] = True
    elif model.upfront:
        section["upfront"] = True
    if model.fixed_route is not None:
        section["fixed_route"] = model.fixed_route
    own = {
        f"{place}.{name}": tensor.clone(memory_format=torch.contiguous_format)
        for place, part in _own_parts(model).items()
        for name, tensor in part.state_dict().items()
    }
    _save(model.classifier.config, tensors | own, {HADSKIP_KEY: section}, folder)


def load_student(folder: Path) -> tuple[Student, StudentSettings]:
    """Loads what `save_student` wrote.

    Raises:
        BundleError: not a student's checkpoint, a fixed route that the model cannot take, exits or a criterion that
            are not known, or see `load_classifier`.
    """
    classifier, file = load_classifier(folder), folder / "config.json"
    try:
        section = json.loads(file.read_text())[HADSKIP_KEY]
        settings = StudentSettings(section["gate_width"], section["gate_threshold"], section["budget"])
    except (KeyError, TypeError) as error:
        raise BundleError(f"{file}: no {HADSKIP_KEY!r} section with {error}; not a gated checkpoint") from None
    route, kind, criterion = (section.get(name) for name in ("fixed_route", "exits", "criterion"))
    if route is not None and not is_route(route, classifier.config.num_layers):
        raise BundleError(
            f"{file}: fixed_route is {route!r}, expected layers from 1 to {classifier.config.num_layers} in ascending"
            " order; copy the checkpoint again"
        )
    jumps = section.get("gated") is True
    if kind is None:
        model: Student = GatedClassifier(
            classifier, settings.width, fixed_route=None if route is None else tuple(route),
            upfront=section.get("upfront") is True,
        )  # fmt: skip
    elif kind in EXIT_KINDS and criterion in CRITERIA and go_together(kind, criterion, jumps):
        model = ExitClassifier(classifier, kind, criterion, settings.width, jumps)
    else:
        raise BundleError(f"{file}: exits {kind!r} that leave by {criterion!r}, which do not go together here")
    tensors = _read_weights(folder)
    for place, part in _own_parts(model).items():
        own = {k.removeprefix(f"{place}."): v for k, v in tensors.items() if k.startswith(f"{place}.")}
        _load_state(part, own, folder)
    return model.eval(), settings


def _own_parts(model: Student) -> dict[str, nn.ModuleList]:
    """What a student has beside its body, by where that lies in a checkpoint."""
    return {GATES: model.gates} | ({EXITS: model.exits} if isinstance(model, ExitClassifier) else {})


def load_tokenizer(folder: Path) -> Any:
    """A model's tokenizer, as `transformers` loads it (`PreTrainedTokenizerFast`).

    Raises:
        BundleError: none there, or one that exists only in Python ("slow"), which the runtime cannot run.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make one up
        raise BundleError(f"{folder}: no tokenizer there ({' or '.join(TOKENIZER_FILES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here
        raise BundleError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BundleError(f"{folder}: only a slow (Python) tokenizer there; save its fast version, tokenizer.json")
    if tokenizer.init_kwargs.get("auto_map"):
        raise BundleError(f"{folder}: a tokenizer with code of its own (auto_map) is not supported; save it without")
    if getattr(tokenizer, "split_special_tokens", False):
        raise BundleError(f"{folder}: a tokenizer with split_special_tokens is not supported; save it without")
    return tokenizer


def save_tokenizer(folder: Path, file: Path) -> None:
    """Writes the model's tokenizer as one `tokenizer.json`, and beside it the `tokenizer_config.json` with which
    `transformers` loads it, whichever class it came from.

    Raises:
        BundleError: see `load_tokenizer`.
    """
    tokenizer = load_tokenizer(folder)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    file.parent.mkdir(parents=True, exist_ok=True)
    backend.save(str(file))
    special = {f"{role}_token": getattr(tokenizer, f"{role}_token", None) for role in SPECIAL_TOKENS}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": tokenizer.model_input_names,
        "truncation_side": tokenizer.truncation_side,
        **{name: token for name, token in special.items() if token is not None},
    }
    file.with_name(TOKENIZER_CONFIG).write_text(json.dumps(about, indent=2) + "\n")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors file or files."""
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if index.is_file() and not files[0].is_file():  # `transformers` looks in this order, too
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
            files = [folder / Path(name).name for name in sorted(names)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{index}: damaged ({first_line(error)}); fetch the model again") from error
    if not all(file.is_file() for file in files):
        if list(folder.glob("*.bin")):
            raise BundleError(f"{folder}: pickled weights are refused; save the model with safe_serialization=True")
        missing = next(file.name for file in files if not file.is_file())
        raise BundleError(f"{folder}: no {missing} there")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{file}: cannot be read as safetensors ({error})") from error
    return tensors


def _normalise_names(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """A bare encoder's names become those of a classifier's checkpoint, TensorFlow-era norms get today's names."""
    bare = not any(name.startswith(f"{family.prefix}.") for name in tensors)
    result = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        result[family.as_in_classifier(name) if bare else name] = tensor
    return result


def _from_hugging_face(theirs: dict[str, Tensor], names: Names, folder: Path) -> dict[str, Tensor]:
    ours = {}
    for name, sources in names.items():
        tensors = [theirs[source].float() for source in sources if source in theirs]
        if len({tensor.shape for tensor in tensors}) > 1:
            raise BundleError(f"{folder}: weights do not fit together: {', '.join(sources)} differ in shape")
        if len(tensors) == len(sources):
            ours[name] = torch.cat(tensors)
    return ours


def _check_all_read(theirs: dict[str, Tensor], names: Names, family: Family, folder: Path, fine_tuned: bool) -> None:
    """Every tensor is read, or known to be of no use to a classifier; under a new head, other heads are, too.

    Raises:
        BundleError: one is not, or one that is read holds no numbers.
    """
    read = {name for sources in names.values() for name in sources}
    for name, tensor in theirs.items():
        if name in read:
            if tensor.dtype not in READABLE:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise BundleError(
                    f"{folder}: {name} is {kind}, a quantised weight; --model takes weights in fp32, fp16 or bf16"
                )
            if not tensor.isfinite().all():
                raise BundleError(f"{folder}: {name} has values that are no finite numbers; fetch or train it again")
        elif not name.startswith((*family.unused, f"{GATES}.", f"{EXITS}.")):
            if any(part in name for part in ADAPTERS):
                raise BundleError(
                    f"{folder}: {name} is of an adapter; merge it into the model before (merge_and_unload)"
                )
            if fine_tuned or name.startswith(f"{family.prefix}."):
                raise BundleError(
                    f"{folder}: {name} is in the checkpoint, and a {family.title} classifier does not have it"
                )


def _to_hugging_face(model: Classifier) -> dict[str, Tensor]:
    state = model.state_dict()
    return {
        source: part.contiguous()
        for name, sources in FAMILIES[model.config.family].names(model.config).items()
        for source, part in zip(sources, state[name].chunk(len(sources)), strict=True)
    }


def _load_state(module: nn.Module, state: dict[str, Tensor], folder: Path, fresh: tuple[str, ...] = ()) -> None:
    """Loads all of `state` into all of `module`, but for parts whose names begin with one of `fresh`."""
    try:
        report = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BundleError(f"{folder}: weights do not fit config.json ({reason})") from error
    missing = [name for name in report.missing_keys if not name.startswith(fresh)] if fresh else report.missing_keys
    if missing or report.unexpected_keys:
        what = f"lack {missing[0]}" if missing else f"have an unexpected {report.unexpected_keys[0]}"
        raise BundleError(f"{folder}: the weights {what}; is this a complete checkpoint?")


def hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """config.json of a classifier, as `transformers` has it.

    Raises:
        DataError: two labels have the same name.
    """
    labels = config.labels
    if len(set(labels)) != len(labels):
        raise DataError(f"label names must differ: {', '.join(labels)}")
    return FAMILIES[config.family].written(config)


def _save(config: EncoderConfig, tensors: dict[str, Tensor], section: dict, folder: Path) -> None:
    content = json.dumps(hugging_face_config(config) | section, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(content)
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})

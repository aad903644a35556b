"""What somebody would run instead: another fine-tuned classifier of the same labels, every layer of it, in an engine of
its own built like the bundle's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hadskip_export.benchmark.race import Entered, loaded_bundle
from hadskip_export.data.problems import numbered
from hadskip_export.data.text import Text
from hadskip_export.exporters.plan import EnginePlan
from hadskip_export.exporters.write import Source, write_bundle
from hadskip_export.modeling.checkpoint import load_classifier, save_tokenizer
from hadskip_export.modeling.gated import GatedClassifier
from hadskip_export.routing.points import Point
from hadskip_export.runtime.manifest import Manifest
from hadskip_export.runtime.tokenization import Tokenizer
from hadskip_export.support.errors import DataError, EngineError
from hadskip_export.verification.original import check_same_as_original

PARITY_TEXTS = 100


@contextmanager
def loaded_peer(folder: Path, like: Manifest, plan: EnginePlan, texts: Sequence[Text], out: Path) -> Iterator[Entered]:
    """
    Args:
        folder: a Hugging Face model folder.
        like: whose labels, metric and length of texts it is to share.
        plan: its engine.
        texts: some are what its answers are checked on.
        out: where its bundle goes.

    Raises:
        BundleError: see `load_classifier`, `check_same_as_original`.
        DataError: no folder, or a classifier of other labels or of another kind.
        EngineError: the engine gives other answers than PyTorch.
    """
    if not folder.is_dir():
        raise DataError(f"--against {folder}: no such folder; give a fine-tuned classifier's")
    model, wanted = load_classifier(folder), like.model
    config, theirs, ours = model.config, numbered(model.config.labels), numbered(wanted.labels)
    if config.problem_type != wanted.problem_type or sorted(theirs) != sorted(ours):
        raise DataError(
            f"--against {folder}: answers {', '.join(config.labels)} ({config.problem_type}), and the bundle"
            f" {', '.join(wanted.labels)} ({wanted.problem_type})"
        )
    length = min(wanted.max_length, config.most_tokens)
    tokenizer = out.with_name(f"{out.name}-tokenizer") / "tokenizer.json"
    save_tokenizer(folder, tokenizer)
    to_serve = Tokenizer(tokenizer, length, config.vocab_size, config.type_vocab_size)
    some = list(texts[:PARITY_TEXTS])
    check_same_as_original(folder, to_serve, model, some, fine_tuned=True)
    route = tuple(range(1, config.num_layers + 1))
    point = Point(config.num_layers, (), "all layers", config.num_layers, ((route, 1.0),))
    source = Source(
        model=GatedClassifier(model, fixed_route=route), full=None, tokenizer=tokenizer, max_length=length,
        points=(point,), budget=point.budget, task=like.task, metric=like.metric, texts=some,
    )  # fmt: skip
    report = write_bundle(source, out, plan)
    if report is None or report.parity != "passed":
        raise EngineError(f"--against {folder}: {plan.tag} does not give PyTorch's answers; its speed is worth nothing")
    columns = tuple(map(theirs.index, ours))
    with loaded_bundle(folder.name, out, {"engine": f"{plan.tag}-{plan.cut}"}, columns, texts) as entered:
        yield entered

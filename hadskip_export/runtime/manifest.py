"""What a bundle says of itself: its manifest, typed, and the names of its pieces."""

from dataclasses import dataclass, field
from typing import Literal

from hadskip_export.data.problems import SINGLE, Problem, ProblemType
from hadskip_export.routing.criteria import CRITERIA, Criterion
from hadskip_export.routing.points import Point, thresholds_at
from hadskip_export.routing.routes import Route
from hadskip_export.runtime.engines import Cut
from hadskip_export.runtime.integrity import FileInfo

FORMAT = 2
MODEL, WEIGHTS, ENGINES_FOLDER = "model", "model/weights", "engines"
GRAPH_SUFFIX = ".onnx"  # engines choose by it how a file is read: another one would be read past our checks
SEGMENTS = "token_type_ids"
MODEL_INPUTS = ("input_ids", "attention_mask", SEGMENTS)
STATES = ("hidden_states", "attention_mask")
EXITED = ("exits", "gated-exits")  # kinds of routers
ABOUT = "hadskip"  # the name under which the files of tensors have JSON of our own
FULL, WHOLE, WHOLE_ALONE, ALL_GATES = "full", "whole", "whole_alone", "gates"


def layer_name(index: int) -> str:
    """The piece of layer `index` (from 0): `layer_01`, for whoever reads a file name counts from 1."""
    return f"layer_{index + 1:02d}"


def gate_name(index: int) -> str:
    """The piece of the gate before layer `index` (from 0): `gate_01`."""
    return f"gate_{index + 1:02d}"


def exit_name(index: int) -> str:
    """The piece of the exit after layer `index` (from 0): `exit_01`."""
    return f"exit_{index + 1:02d}"


@dataclass(frozen=True)
class ModelInfo:
    """Sizes and names of the model. `inputs`: what whole models take, in order; the embeddings take all but the
    attention_mask. `vocab_size`, `type_vocab_size`: tokens and segments that have an embedding. `pooling`: whether the
    head reads the first token or the mean of all. `problem_type`, `label_thresholds`: see `Problem`."""

    family: str
    layers: int
    hidden_size: int
    vocab_size: int
    max_length: int
    labels: tuple[str, ...]
    inputs: tuple[str, ...] = MODEL_INPUTS
    type_vocab_size: int = 2
    pooling: Literal["cls", "mean"] = "cls"
    problem_type: ProblemType = SINGLE
    label_thresholds: tuple[float, ...] = ()

    @property
    def problem(self) -> Problem:
        return Problem(self.problem_type, self.labels, self.label_thresholds)

    @property
    def embedding_inputs(self) -> tuple[str, ...]:
        return tuple(name for name in self.inputs if name != "attention_mask")

    @property
    def head_inputs(self) -> tuple[str, ...]:
        return STATES[:1] if self.pooling == "cls" else STATES


@dataclass(frozen=True)
class RouterInfo:
    """How rows are routed.

    Args:
        kind: a policy by its name in `POLICIES`: `gates` ask each input before each layer, `upfront` once, before the
            first; `exits` let each go that has had enough, `gated-exits` too, and until then it jumps; `static`: every
            input takes `route`, and there is nobody to ask.
        route: the layers that run, numbered from 1, ascending; only of a static router.
        criterion: when an input leaves, a name in `routing.criteria.CRITERIA`; only of exits.
        exit_inputs: what each exit takes, in order; only of exits.
    """

    kind: str
    route: Route | None = None
    criterion: str | None = None
    exit_inputs: tuple[str, ...] = ()

    @property
    def asks_gates(self) -> bool:
        return self.decides and not self.has_exits

    @property
    def asks_once(self) -> bool:
        """Whether all gates see what the embeddings give."""
        return self.kind == "upfront"

    @property
    def has_exits(self) -> bool:
        return self.kind in EXITED

    @property
    def jumps_to_exits(self) -> bool:
        """Whether gates, which no threshold moves, let inputs skip layers before they leave."""
        return self.kind == "gated-exits"

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Those that a model so routed has. Exits that have gates decide in one graph; by other criteria the host does,
        after each layer."""
        asked_in_one = not self.has_exits or (self.leaves_by.of_gate and not self.jumps_to_exits)
        return ("whole", "layers", "gates") if asked_in_one else ("layers", "gates")

    @property
    def leaves_by(self) -> Criterion:
        """Of exits."""
        return CRITERIA[self.criterion or ""]

    @property
    def decides(self) -> bool:
        """Whether each input has margins of its own, and an operating point a threshold for each layer's."""
        return self.route is None


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from the reference.

    Args:
        margins: per layer, in logits; a margin closer than this to the threshold may fall on either side of it. Of
            exits, unless these have gates for a criterion, it is the margins' logarithms that are compared.
        logits: largest difference of a logit where routes agree.
    """

    margins: tuple[float, ...]
    logits: float


@dataclass(frozen=True)
class EngineInfo:
    """One engine of the bundle.

    Args:
        cut: how finely the model is cut, see `Cut`.
        versions, chip: what it was built with and on.
        folder: what it has of its own, relative to the bundle: the report of its check, and files, if it needs any.
        files: piece -> file, relative to the bundle: those that the cut calls, those of `gates` that a whole one is
            measured and checked by, and `full`.
        tolerance: what its parity check allowed; a machine where it is farther off computes something else.
    """

    engine: str
    precision: str
    cut: Cut
    versions: dict[str, str]
    chip: str
    folder: str
    files: dict[str, str]
    parity: Literal["passed", "failed", "unverified"]
    tolerance: Tolerance
    first_bad_piece: str | None = None

    @property
    def name(self) -> str:
        """As `--engine` takes it: `ort-fp32-whole`."""
        return f"{self.engine}-{self.precision}-{self.cut}"


@dataclass(frozen=True)
class Manifest:
    """manifest.json, format 2. Everything a deployment needs to know; no code, no pickle.

    Args:
        points: the operating points, by ascending budget.
        default_budget: that of the point which calls are answered at unless they ask for another.
        pieces: the fp32 graphs, piece -> file, relative to the bundle; what engines are made from and compared with.
        weights: the file of fp32 tensors, by the names of the model's parameters.
    """

    format: int
    created_by: str
    task: str
    metric: str
    model: ModelInfo
    router: RouterInfo
    points: tuple[Point, ...]
    default_budget: float
    opset: int
    pieces: dict[str, str]
    weights: str
    engines: tuple[EngineInfo, ...]
    tokenizer: str = f"{MODEL}/tokenizer.json"
    files: dict[str, FileInfo] = field(default_factory=dict)

    @property
    def default_point(self) -> Point:
        return next(point for point in self.points if point.budget == self.default_budget)

    def thresholds_at(self, budget: float) -> tuple[float, ...]:
        """See `routing.points.thresholds_at`."""
        in_steps = self.router.has_exits and self.router.leaves_by.waits
        return thresholds_at(self.points, budget, self.model.layers, in_steps)

    @property
    def reachable_layers(self) -> list[int]:
        """The layers (from 0) that some input may run: all of them, or those of the static route."""
        route = self.router.route
        return list(range(self.model.layers)) if route is None else [layer - 1 for layer in route]


def pieces_of(cut: Cut, manifest: Manifest) -> list[str]:
    """The pieces that a cut calls, in their order: `layers` asks all gates at once, `whole` is one piece, and of a
    static route there are no gates. Exits may be fused with their layers, and are there all the same."""
    layers, count = [layer_name(index) for index in manifest.reachable_layers], manifest.model.layers
    gates = [gate_name(index) for index in range(count)] if manifest.router.asks_gates else []
    if manifest.router.has_exits:
        gates = [gate_name(index) for index in range(1, count)] if manifest.router.jumps_to_exits else []
        if cut == "whole":
            return [WHOLE]
        return ["embeddings", *layers, *gates, *(exit_name(index) for index in range(count - 1)), "head"]
    return {
        "gates": ["embeddings", *layers, *gates, "head"],
        "layers": ["embeddings", *layers, *([ALL_GATES] if gates else []), "head"],
        "whole": [WHOLE],
    }[cut]

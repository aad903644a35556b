"""What a target is: how an engine's files are made from a bundle's fp32 pieces. No torch: a bundle can be given another
engine where it will serve."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hadskip_export.exporters.assemble import Decided, Form, Pieces, fuse, fuse_exit, whole
from hadskip_export.exporters.weights import OwnTensors, place_graph
from hadskip_export.exporters.whole_exits import whole_exits
from hadskip_export.runtime.engines import Cut, is_reduced
from hadskip_export.runtime.manifest import ALL_GATES, FULL, WHOLE, Manifest, exit_name, layer_name, pieces_of
from hadskip_export.support.progress import track


@dataclass(frozen=True)
class Material:
    """What an engine is made of.

    Args:
        bundle: the bundle's folder.
        manifest: its pieces, weights and default point.
        precision, cut: what is asked for.
        tag: what the engine's own files are called by.
        folder: for files that no other program reads, relative to the bundle.
    """

    bundle: Path
    manifest: Manifest
    precision: str
    cut: Cut
    tag: str
    folder: str

    @property
    def pieces(self) -> list[str]:
        """Those that are called one by one, and full BERT where the bundle has it. (A whole model's are called in
        measurements and checks alone.)"""
        called = pieces_of("gates" if self.cut == "whole" else self.cut, self.manifest)
        return [*called, FULL] if FULL in self.manifest.pieces else called

    @property
    def decided(self) -> Decided:
        """Who decides in a whole graph."""
        thresholds = self.manifest.default_point.thresholds
        router = self.manifest.router
        return Decided(thresholds or (0.0,) * self.manifest.model.layers, router.route, router.asks_once)


class Target(Protocol):
    """
    Attributes:
        precisions: those that the engine can be built with.
        cuts: those that it has, the fastest first (docs/benchmarks.md): that one is its default.
        refuses: kinds of routers that it cannot be built for, and what those have.
        whole_exits: precisions in which a model with exits may be one graph.
    """

    precisions: tuple[str, ...]
    cuts: tuple[Cut, ...]
    refuses: dict[str, str]
    whole_exits: tuple[str, ...]

    def build(self, material: Material) -> dict[str, str]:
        """Writes the engine's files and returns piece -> file, relative to the bundle: the pieces of `material` and, of
        the cut `whole`, that one. What is there already is taken as it is, or left alone.

        Raises:
            EngineError: a library is not installed, or a piece cannot be made.
        """
        ...


# (a piece's graph, its tensors in it) -> its graph in another precision
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class OnnxTarget:
    """The target of an engine that runs ONNX graphs.

    Args:
        converts: by precision, what makes a piece that is computed below fp32; none where the engine runs the fp32
            graphs at that precision.
        fuses: by precision, whether gates or an exit are fused with the layer before them; if not, all gates are one
            piece, asked after each layer, and exits are called one by one.
        whole_stem: by precision, what the file of a whole model is called, where other programs look for it.
    """

    precisions: tuple[str, ...]
    cuts: tuple[Cut, ...]
    converts: dict[str, Convert]
    fuses: dict[str, bool]
    whole_stem: dict[str, str]
    refuses: dict[str, str] = field(default_factory=dict)
    whole_exits: tuple[str, ...] = ()

    def build(self, material: Material) -> dict[str, str]:
        own = OwnTensors(material.bundle, material.tag)
        files = {piece: material.manifest.pieces[piece] for piece in material.pieces}
        files |= self._converted(material, files, own)
        router = material.manifest.router
        asked_by_layers = router.decides and not router.asks_once
        if material.cut == "layers" and asked_by_layers and self.fuses[material.precision]:
            files |= self._fused(material, files, own)
        if material.cut == "whole":
            files |= self._whole(material, files, own)
        return files

    def whole_forms(self, precision: str, family: str = "bert") -> dict[str, Form]:
        """The graphs of a whole model, by piece."""
        return {WHOLE: Form(portable=True)}

    def _converted(self, material: Material, files: dict[str, str], own: OwnTensors) -> dict[str, str]:
        """Writes the pieces below fp32, where that takes graphs of their own; returns their files."""
        convert = self.converts.get(material.precision)
        if convert is None:
            return {}
        pieces, graphs = Pieces(material.bundle, files), {}
        reduced = [piece for piece in files if is_reduced(piece)]
        for piece in track(reduced, len(reduced), material.tag):
            graphs[piece] = convert(pieces.read_with_tensors(piece))
            own.take(graphs[piece], piece)
        own.write()
        return {
            piece: place_graph(material.bundle, graph, f"{piece}.{material.tag}") for piece, graph in graphs.items()
        }

    def _fused(self, material: Material, files: dict[str, str], own: OwnTensors) -> dict[str, str]:
        """Writes all layers but the last with the gates or the exit that come after them; returns their files."""
        pieces, graphs, has_exits = Pieces(material.bundle, files), {}, material.manifest.router.has_exits
        for number in range(1, material.manifest.model.layers):
            piece, after = layer_name(number - 1), exit_name(number - 1) if has_exits else ALL_GATES
            layer, asked = pieces.read(piece), pieces.read(after)
            graphs[piece] = fuse_exit(layer, asked) if has_exits else fuse(layer, asked, number, material.bundle)
            own.take(graphs[piece], piece)
        own.write()
        what = "exit" if has_exits else "gates"
        tag = f".{material.tag}" if material.precision in self.converts else ""  # else they are fp32, as the pieces are
        return {piece: place_graph(material.bundle, graph, f"{piece}_{what}{tag}") for piece, graph in graphs.items()}

    def _whole(self, material: Material, files: dict[str, str], own: OwnTensors) -> dict[str, str]:
        pieces, made = Pieces(material.bundle, files), {}
        model, decided, exits = material.manifest.model, material.decided, material.manifest.router.has_exits
        for piece, form in self.whole_forms(material.precision, model.family).items():
            if exits and not form.rows:  # one row may leave by the graph of many
                continue
            defaults = decided.defaults if form.portable else None
            graph = whole_exits(pieces, model, defaults) if exits else whole(pieces, model, decided, form)
            own.take(graph, piece)
            own.write()
            stem = self.whole_stem.get(material.precision, f"{piece}.{material.tag}")
            made[piece] = place_graph(material.bundle, graph, stem)
        return made

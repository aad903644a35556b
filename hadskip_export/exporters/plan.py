"""What is to be built: an engine, its precision, and how finely the model is cut. Checked once, where it is made."""

from dataclasses import dataclass
from typing import Self, get_args

from hadskip_export.exporters.targets import target_of
from hadskip_export.exporters.targets.base import Target
from hadskip_export.runtime.engines import ENGINES, Cut, engine_class
from hadskip_export.runtime.manifest import RouterInfo
from hadskip_export.support.errors import EngineError

GATES = RouterInfo("gates")


@dataclass(frozen=True)
class EnginePlan:
    """An engine of a bundle, before it is built.

    Args:
        router: the model's.

    Raises:
        EngineError: no such engine, precision or cut, none of a model with such a router, or the engine's library is
            not installed.
    """

    engine: str
    precision: str
    cut: Cut
    router: RouterInfo = GATES

    @classmethod
    def of(
        cls, engine: str = "ort", precision: str = "fp32", cut: Cut | None = None, router: RouterInfo = GATES
    ) -> Self:
        """
        Args:
            cut: the engine's fastest if left out.
        """
        if cut is None and engine in ENGINES and precision in target_of(engine).precisions:
            cut = next((one for one in target_of(engine).cuts if one in _cuts(engine, precision, router)), None)
        return cls(engine, precision, cut or "gates", router)

    @classmethod
    def tagged(cls, option: str, tag: str, cut: Cut | None = None) -> Self:
        """Of an engine and its precision, as `option` has them: `ort-int8`."""
        engine, dash, precision = tag.rpartition("-")
        if not dash:
            raise EngineError(f"{option} {tag}: expected an engine and its precision, as ort-fp32")
        return cls.of(engine, precision, cut)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise EngineError(f"--engine {self.engine}: not known; there are {', '.join(ENGINES)}")
        have = self.target.precisions
        if self.precision not in have:
            raise EngineError(
                f"--precision {self.precision}: not to be had with {self.engine}; there are {', '.join(have)}"
            )
        cuts = [cut for cut in get_args(Cut) if cut in self.target.cuts]
        if self.cut not in cuts:
            raise EngineError(f"--cut {self.cut}: not to be had with {self.engine}; there are {', '.join(cuts)}")
        if self.cut not in (those := _cuts(self.engine, self.precision, self.router)):
            where = f" in {self.engine} {self.precision}" if self.cut in self.router.cuts else ""
            raise EngineError(f"--cut {self.cut}: not of a model with such exits{where}, which has {', '.join(those)}")
        if self.router.kind in self.target.refuses:
            what = self.target.refuses[self.router.kind]
            raise EngineError(f"--engine {self.engine}: has no code for {what}; the other engines run them")
        engine_class(self.engine).versions()

    @property
    def target(self) -> Target:
        return target_of(self.engine)

    @property
    def tag(self) -> str:
        """What the engine's own files are called by, whatever the cut: `ort-int8`."""
        return f"{self.engine}-{self.precision}"

    def check_measurable(self) -> Self:
        """
        Raises:
            EngineError: this machine can build it and not run it.
        """
        if lack := engine_class(self.engine).why_not_here():
            raise EngineError(f"{self.tag}: cannot be measured here: {lack}")
        return self


def _cuts(engine: str, precision: str, router: RouterInfo) -> list[Cut]:
    """Those of a model with such a router."""
    one_graph = not router.has_exits or precision in target_of(engine).whole_exits
    return [cut for cut in router.cuts if cut != "whole" or one_graph]

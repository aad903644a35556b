"""The whole gated model on a GPU, and full BERT: what a call computes between its ids and its logits.

To wait for what the gates say, to read it and to start the next layer takes nearly as long as a layer. So the host does
not wait: it starts the layer that the gates would choose if the last layer had changed nothing of their mind, and only
then reads what they said before that layer. Whatever it started, the device itself decides: every program asks all
gates on the states that it finds, beside the layer's own work, and only rows for which this is the next layer take over
its output. A wrong guess therefore costs the time of a layer and nothing else.
"""

import numpy as np

from hadskip_export.runtime.engines.torch_cuda.lane import Lane
from hadskip_export.runtime.engines.torch_cuda.layers import layer, sublayers
from hadskip_export.runtime.engines.torch_cuda.model import Model, round_rows
from hadskip_export.runtime.engines.torch_cuda.recorder import Program


class Ahead:
    """The piece `graph`, for any number of rows, each with thresholds of its own."""

    def __init__(self, model: Model, name: str):
        self._model, self._name = model, name
        self._embeddings, self._gates, self._head = (model.part(part) for part in ("embeddings", "gates", "head"))
        self._layers = model.layers()
        self._first = 0  # what the first row of the last call began with

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """input_ids, token_type_ids where the model has them, attention_mask, int64 [b, s], thresholds float32 [b, L],
        the most layers int64 [1] -> logits float32 [b, classes], the layers that ran float32 [b, L] of 0 and 1."""
        with self._model.running(self._name), self._model.recorder.alone():
            *ids, mask, thresholds, most = inputs
            rows, length = mask.shape
            lane = self._model.lane(1 << (rows - 1).bit_length(), length)  # layers are recorded anew in each lane
            lane.send(ids, mask, thresholds, int(most[0]))
            while not self._run(lane, rows):
                pass
            return lane.answered(rows)

    def _run(self, lane: Lane, rows: int) -> bool:
        """False where a program had to be recorded first."""
        last = self._model.num_layers
        lane.expect()
        if not lane.start(("begin",), self._begin):
            return False
        planned, first = [self._first] * rows, None
        if rows > 1:  # their ways part too soon for a guess
            if not lane.start(("look",), self._look):
                return False
            planned, _ = lane.reported(rows)
        while True:
            now, slots = min(planned), 1
            if rows > 1:
                listed = [row for row, one in enumerate(planned) if one == now]
                slots = round_rows(len(listed))
                lane.list_rows(listed)
            key, record = (("layer", now, slots), self._layer) if now < last else (("finish",), self._finish)
            if not lane.start(key, record):
                return False
            found, after = lane.reported(rows)
            if first is None:
                first = self._first = found[0]
            if now == last == min(found):
                return True
            planned = [
                then if one == this == now else this for one, this, then in zip(planned, found, after, strict=True)
            ]

    def _begin(self, lane: Lane) -> Program:
        return self._model.recorder.record(lambda: self._model.kernels.begin(self._embeddings, lane))

    def _look(self, lane: Lane) -> Program:
        return self._model.recorder.record(lambda: self._model.kernels.decide(self._gates, lane, -1, 0))

    def _layer(self, lane: Lane, index: int, slots: int) -> Program:
        recorder, kernels, part = self._model.recorder, self._model.kernels, self._layers[index]

        def step() -> None:
            states, bias = (lane.states, lane.bias) if len(lane.states) == 1 else kernels.gather(lane, slots)
            with recorder.beside():
                kernels.decide(self._gates, lane, index, slots)
            ends = sublayers(part, states, bias, kernels.add_norm)
            recorder.join()
            kernels.replace(part, "output_norm", *ends, lane)

        return recorder.record(step)

    def _finish(self, lane: Lane) -> Program:
        recorder = self._model.recorder

        def step() -> None:
            with recorder.beside():
                self._model.kernels.decide(self._gates, lane, self._model.num_layers, 0)
            self._model.kernels.reply(self._head, lane.states, lane)
            recorder.join()

        return recorder.record(step)


class Full:
    """The piece `full`: every layer, in one program."""

    def __init__(self, model: Model, name: str):
        self._model, self._name = model, name
        self._embeddings, self._head = model.part("full.embeddings"), model.part("full.head")
        self._layers = model.layers("full.")

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """input_ids, attention_mask, token_type_ids where the model has them, int64 [b, s] -> logits."""
        with self._model.running(self._name), self._model.recorder.alone():
            input_ids, mask, *types = inputs
            lane = self._model.lane(*mask.shape)
            lane.send([input_ids, *types], mask, None, 0)
            while not lane.start(("full",), self._record):
                pass
            return lane.answered(len(mask))[0]

    def _record(self, lane: Lane) -> Program:
        kernels = self._model.kernels

        def step() -> None:
            kernels.begin(self._embeddings, lane)
            states = lane.states
            for part in self._layers:
                states = layer(part, states, lane.bias, kernels.add_norm)
            kernels.reply(self._head, states, lane)

        return self._model.recorder.record(step)

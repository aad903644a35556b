"""The whole gated model on a GPU, and full BERT: what a call computes between its ids and its logits.

To wait for what the gates say, to read it and to start the next layer takes nearly as long as a layer. So the host
does not wait: every program asks all gates on the states that it finds, beside its layer's own work, and tells the host
which layer they would choose after this one if it changed nothing of their mind. That one the host starts. Only rows
for which it turns out to be the next layer take over its output, so a layer started in vain costs its time and nothing
else.
"""

import numpy as np

from hadskip_export.runtime.engines.torch_cuda.lane import Lane
from hadskip_export.runtime.engines.torch_cuda.layers import attention, layer, sublayers
from hadskip_export.runtime.engines.torch_cuda.model import Model, round_rows
from hadskip_export.runtime.engines.torch_cuda.recorder import Program

NONE = -1  # no layer yet


class Ahead:
    """The piece `whole`, for any number of rows, each with thresholds of its own."""

    def __init__(self, model: Model, name: str):
        self._model, self._name = model, name
        self._embeddings, self._gates, self._head = (model.part(part) for part in ("embeddings", "gates", "head"))
        self._layers = model.layers()
        self._last = model.num_layers - 1
        self._first = 0  # layer that the first row of the last call ran

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """input_ids, attention_mask, token_type_ids where the model has them, int64 [b, s], thresholds float32 [b, L],
        the most layers int64 [b] -> logits float32 [b, classes], the layers that ran float32 [b, L] of 0 and 1."""
        with self._model.running(self._name), self._model.recorder.alone():
            input_ids, mask, *types, thresholds, most = inputs
            ids = [input_ids, *types]
            rows, length = mask.shape
            lane = self._model.lane(1 << (rows - 1).bit_length(), length)  # layers are recorded anew in each lane
            lane.send(ids, mask, thresholds, int(most[0]))
            while not self._run(lane, rows):
                pass
            logits, ran = lane.answered(rows)
            first_row = ran[0].tolist()
            self._first = first_row.index(1) if 1 in first_row else self._model.num_layers
            return logits, ran

    def _run(self, lane: Lane, rows: int) -> bool:
        """False where a program had to be recorded first."""
        none_left = self._model.num_layers
        now, listed = self._first if rows == 1 else NONE, 1  # the ways of many part too soon
        key = "begin", now, listed
        lane.expect()
        while lane.start(("ahead", *key), self._record):
            before, (now, listed) = now, lane.reported()
            if now == none_left and before >= self._last:  # the head was in this program, and no row changes any more
                return True
            key = "go on", now, 1 if now == none_left else round_rows(listed)
        return False

    def _record(self, lane: Lane, how: str, index: int, slots: int) -> Program:
        """A program for a layer by its index, for the head after all of them, or for a look at the gates (`NONE`). That
        of the last layer has the head in it, whose answer counts if no row goes on elsewhere."""

        def step() -> None:
            if how == "begin":
                self._model.kernels.begin(self._embeddings, lane)
            if index == NONE:
                self._model.kernels.decide(self._gates, lane, NONE, 0)
            elif index == self._model.num_layers:
                self._finish(lane)
            else:
                self._layer(lane, index, slots)
            if index == self._last:
                self._model.kernels.reply(self._head, lane.states, lane)

        return self._model.recorder.record(step)

    def _layer(self, lane: Lane, index: int, slots: int) -> None:
        recorder, kernels, part = self._model.recorder, self._model.kernels, self._layers[index]
        alone = len(lane.states) == 1
        states, bias = (lane.states, lane.bias) if alone else kernels.gather(lane, slots)
        last = index == self._last

        def ask() -> None:
            with recorder.beside():
                kernels.decide(self._gates, lane, index, slots)

        if alone:  # such a layer leaves room on the device, and CUDA is quicker to go on with what a program has first
            context = attention(part, states, bias, last=last)
            with recorder.parted():
                ends = sublayers(part, states, context, kernels.add_norm)
                ask()
        else:  # which fills the device: what is asked last ends last, and the host waits for it
            with recorder.parted():
                ask()
                ends = sublayers(part, states, attention(part, states, bias, last=last), kernels.add_norm)
        kernels.replace(part, "output_norm", *ends, lane)

    def _finish(self, lane: Lane) -> None:
        recorder, kernels = self._model.recorder, self._model.kernels
        with recorder.parted():
            kernels.decide(self._gates, lane, self._model.num_layers, 0)
            with recorder.beside():
                kernels.reply(self._head, lane.states, lane)


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
                states = layer(part, states, lane.bias, kernels.add_norm, last=part is self._layers[-1])
            kernels.reply(self._head, states, lane)

        return self._model.recorder.record(step)

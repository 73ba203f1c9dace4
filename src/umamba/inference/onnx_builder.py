"""Collects the operations and constants of an ONNX graph under names that depend on their order only."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch


class UnexportableError(Exception):
    """The network cannot be written as ONNX; the text says why."""


@dataclass(frozen=True)
class Value:
    """A tensor of the model that is known when it runs.

    Attributes:
        name: in the graph.
        shape: all sizes are fixed; () of a value inside the pieces of an operation whose shape is not used.
    """

    name: str
    shape: tuple[int, ...] = ()


class Builder:
    """The nodes and constants of a graph, or of the body of a loop in it.

    Attributes:
        nodes: in the order of their execution.
        initializers: the constants.
        constant_bytes: bytes of the constants.
    """

    def __init__(self, prefix: str = "") -> None:
        """Begin an empty graph.

        Args:
            prefix: of all names; a body needs its own, because its names must differ from those of the graph around it.
        """
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constant_bytes = 0
        self._prefix, self._bodies = prefix, 0
        self._constants: dict[tuple[Any, ...], str] = {}

    def add(
        self,
        kind: str,
        inputs: Sequence[Any],
        shape: Sequence[int] = (),
        name: str | None = None,
        **attributes: Any,
    ) -> Value:
        """Add an operation with one output.

        Args:
            kind: name of the operation in the standard.
            inputs: values, tensors, arrays or numbers; None: an optional input that is left out.
            shape: of the output.
            name: of the output; None: the next free one.
            attributes: of the operation.
        """
        return self.add_several(kind, inputs, [shape], name, **attributes)[0]

    def add_several(
        self,
        kind: str,
        inputs: Sequence[Any],
        shapes: Sequence[Sequence[int]],
        name: str | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Add an operation with several outputs; see `add`."""
        number = len(self.nodes)
        base = name or f"{self._prefix}{kind.lower()}_{number}"
        outputs = [base] if len(shapes) == 1 else [f"{base}_{index}" for index in range(len(shapes))]
        names = ["" if each is None else self.value(each).name for each in inputs]
        while names and not names[-1]:
            names.pop()
        self.nodes.append(onnx.helper.make_node(kind, names, outputs, f"{self._prefix}node_{number}", **attributes))
        return [Value(output, tuple(shape)) for output, shape in zip(outputs, shapes, strict=True)]

    def value(self, given: Any) -> Value:
        """Return a value as it is, and a tensor, array or number as a constant; numbers are float32."""
        if isinstance(given, Value):
            return given
        if isinstance(given, int | float):
            given = np.float32(given)
        if isinstance(given, torch.Tensor):
            given = given.detach().cpu().numpy()
        array = np.ascontiguousarray(given) if np.ndim(given) else np.asarray(given)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants:
            name = f"{self._prefix}constant_{len(self._constants)}"
            self._constants[key] = name
            self.constant_bytes += array.nbytes
            self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return Value(self._constants[key], tuple(array.shape))

    def sizes(self, numbers: Sequence[int]) -> Value:
        """Return whole numbers, such as a shape, as a constant."""
        return self.value(np.array(list(numbers), dtype=np.int64))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Return x in another shape."""
        return x if x.shape == tuple(shape) else self.add("Reshape", [x, self.sizes(shape)], shape)

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        """Return x with its axes in another order."""
        axes = [axis % len(x.shape) for axis in order]
        if axes == list(range(len(axes))):
            return x
        return self.add("Transpose", [x], [x.shape[axis] for axis in axes], perm=axes)

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
        """Return the parts of x of these sizes along an axis."""
        axis %= len(x.shape)
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return self.add_several("Split", [x, self.sizes(sizes)], shapes, axis=axis)

    def cut(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Return the samples from `start` to `stop` of an axis, as Python counts them; a step of -1 goes backwards."""
        axis %= len(x.shape)
        chosen = range(x.shape[axis])[slice(start, stop, step)] if step > 0 else range(x.shape[axis])[::step]
        if step == 1 and len(chosen) == x.shape[axis]:
            return x
        shape = (*x.shape[:axis], len(chosen), *x.shape[axis + 1 :])
        first, last = (chosen.start, chosen.stop) if step > 0 else (-1, -(2**31))
        limits = [self.sizes([number]) for number in (first, last, axis, step)]
        return self.add("Slice", [x, *limits], shape)

    def scan(
        self, states: Sequence[Value], sequences: Sequence[Value], outputs: Sequence[Sequence[int]], body: Any
    ) -> list[Value]:
        """Add a loop over the first axis of sequences.

        Args:
            states: values before the first step.
            sequences: what each step gets a part of, (steps, *part).
            outputs: shapes of what a step puts out, without the axis of the steps.
            body: `body(builder, states, parts)` adds the operations of a step, and returns the new states and what the
                step puts out.

        Returns:
            The last states, then the outputs of all steps, (steps, *output).
        """
        inner = Builder(f"{self._prefix}body_{self._bodies}_")
        self._bodies += 1
        names = [f"state_{index}" for index in range(len(states))] + [
            f"part_{index}" for index in range(len(sequences))
        ]
        shapes = [state.shape for state in states] + [sequence.shape[1:] for sequence in sequences]
        given = [Value(inner._prefix + name, shape) for name, shape in zip(names, shapes, strict=True)]
        results = body(inner, given[: len(states)], given[len(states) :])
        after = zip(results, [*(state.shape for state in states), *outputs], strict=True)
        inputs, found = (
            [
                onnx.helper.make_tensor_value_info(each.name, onnx.TensorProto.FLOAT, list(shape))
                for each, shape in pairs
            ]
            for pairs in ([(each, each.shape) for each in given], after)
        )
        steps = sequences[0].shape[0]
        return self.add_several(
            "Scan",
            [*states, *sequences],
            [*(state.shape for state in states), *((steps, *output) for output in outputs)],
            body=onnx.helper.make_graph(inner.nodes, inner._prefix + "body", inputs, found, inner.initializers),
            num_scan_inputs=len(sequences),
        )

"""ONNX's LSTM, GRU and RNN implemented with PyTorch, step by step as in the specification.

They cover what onnx's evaluator lacks: sequence lengths, directions, clipping, peepholes and named activations.

https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from onward.stages.workers.node import Node

Tensor = torch.Tensor
Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact where torch's softplus switches to x."""
    return torch.logaddexp(x, torch.zeros_like(x))


_ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": functional.softsign,
    "softplus": softplus,
}


# A cell's parameters, for one direction. `w` is [gates * hidden, input], `r` is [gates * hidden, hidden], `b` is
# [2 * gates * hidden] (of w, then of r), `p` (peepholes) is [3 * hidden], as W, R, B and P of the specification.
def _lstm(node: Node, activations: list[Activation], w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> Cell:
    input_peephole, output_peephole, forget_peephole = torch.zeros(3, 1) if p is None else p.chunk(3)
    gate, cell, hidden = activations
    w_bias, r_bias = b.chunk(2)

    def step(x: Tensor, state: State) -> State:
        h, c = state
        input_gate, output_gate, forget_gate, new = (x @ w.T + h @ r.T + w_bias + r_bias).chunk(4, -1)
        input_gate = gate(_clipped(node, input_gate + input_peephole * c))
        forget_gate = gate(_clipped(node, forget_gate + forget_peephole * c))
        c = forget_gate * c + input_gate * cell(_clipped(node, new))
        output_gate = gate(_clipped(node, output_gate + output_peephole * c))
        return output_gate * hidden(c), c

    return step


def _gru(node: Node, activations: list[Activation], w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> Cell:
    (w_update, w_reset, w_hidden), (r_update, r_reset, r_hidden), biases = w.chunk(3), r.chunk(3), b.chunk(6)
    gate, hidden = activations

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        update = gate(_clipped(node, x @ w_update.T + h @ r_update.T + biases[0] + biases[3]))
        reset = gate(_clipped(node, x @ w_reset.T + h @ r_reset.T + biases[1] + biases[4]))
        reset_after = reset * (h @ r_hidden.T + biases[5])
        reset_before = (reset * h) @ r_hidden.T + biases[5]
        recurrent = reset_after if node.get("linear_before_reset", 0) else reset_before
        new = hidden(_clipped(node, x @ w_hidden.T + recurrent + biases[2]))
        return ((1 - update) * new + update * h,)

    return step


def _rnn(node: Node, activations: list[Activation], w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> Cell:
    (hidden,) = activations
    w_bias, r_bias = b.chunk(2)
    return lambda x, state: (hidden(_clipped(node, x @ w.T + state[0] @ r.T + w_bias + r_bias)),)


def _clipped(node: Node, x: Tensor) -> Tensor:
    limit = node.get("clip", None)
    return x if limit is None else torch.clamp(x, -limit, limit)


def _recurrent(
    cell: Any,
    gates: int,
    defaults: list[str],
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
) -> State:
    """Run `cell` over sequences; from `x` on, the parameters are the operator's inputs.

    `x` is [steps, batch, input] and the states are [directions, batch, hidden]; with layout 1 the batch comes first.
    """
    states = 2 if cell is _lstm else 1
    if node.get("input_forget", 0) or "activation_alpha" in node.attributes or "activation_beta" in node.attributes:
        raise NotImplementedError("a coupled forget gate, or activations with parameters")
    directions, hidden = w.shape[0], r.shape[-1]
    names = node.get("activations", [])
    names = [name.decode() if isinstance(name, bytes) else name for name in names] or defaults * directions
    if any(name.lower() not in _ACTIVATIONS for name in names):
        raise NotImplementedError(f"activations {names}")
    is_batch_first = node.get("layout", 0)
    if is_batch_first:
        x, h, c = (None if value is None else value.swapaxes(0, 1) for value in (x, h, c))  # type: ignore[assignment]
    steps, batch = x.shape[0], x.shape[1]
    if b is None:
        b = torch.zeros(directions, 2 * gates * hidden, dtype=x.dtype)
    zeros = torch.zeros(directions, batch, hidden, dtype=x.dtype)
    initial = [zeros if value is None else value for value in (h, c)][:states]
    length = torch.full((batch,), steps) if lengths is None else lengths.long()
    reverse = node.get("direction", "forward") == "reverse"
    outputs, last = [], []
    for direction in range(directions):
        chosen = [_ACTIVATIONS[name.lower()] for name in names[direction * len(defaults) :][: len(defaults)]]
        peepholes = None if p is None else p[direction]
        step = cell(node, chosen, w[direction], r[direction], b[direction], peepholes)
        backwards = reverse or direction == 1
        state = tuple(value[direction] for value in initial)
        hidden_states = torch.zeros(steps, batch, hidden, dtype=x.dtype)
        for time in reversed(range(steps)) if backwards else range(steps):
            is_active = (time < length)[:, None]  # a sequence that has ended keeps its state and outputs zeros
            state = tuple(
                torch.where(is_active, new, old) for new, old in zip(step(x[time], state), state, strict=True)
            )
            hidden_states[time] = torch.where(is_active, state[0], torch.zeros_like(state[0]))
        outputs.append(hidden_states)
        last.append(state)
    y = torch.stack(outputs, dim=1)
    final = tuple(torch.stack([state[number] for state in last]) for number in range(states))
    if is_batch_first:
        return (y.permute(2, 0, 1, 3), *(value.swapaxes(0, 1) for value in final))
    return (y, *final)


RECURRENT: dict[str, Callable[..., State]] = {
    "LSTM": partial(_recurrent, _lstm, 4, ["Sigmoid", "Tanh", "Tanh"]),
    "GRU": partial(_recurrent, _gru, 3, ["Sigmoid", "Tanh"]),
    "RNN": partial(_recurrent, _rnn, 1, ["Tanh"]),
}

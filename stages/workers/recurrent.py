"""ONNX's LSTM, GRU and RNN over PyTorch, step by step as the specification has them: lengths, directions, clipping,
peepholes and named activations included, which onnx's own evaluator leaves out.

https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from onward.stages.workers.node import Node

Tensor = torch.Tensor
Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]

_ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
}


def _lstm(node: Node, f: list[Activation], w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> Cell:
    input_peep, output_peep, forget_peep = torch.zeros(3, 1) if p is None else p.chunk(3)
    wb, rb = b.chunk(2)

    def step(x: Tensor, state: State) -> State:
        h, c = state
        i, o, forget, new = (x @ w.T + h @ r.T + wb + rb).chunk(4, -1)
        i = f[0](_clipped(node, i + input_peep * c))
        forget = f[0](_clipped(node, forget + forget_peep * c))
        c = forget * c + i * f[1](_clipped(node, new))
        o = f[0](_clipped(node, o + output_peep * c))
        return o * f[2](c), c

    return step


def _gru(node: Node, f: list[Activation], w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> Cell:
    (w_z, w_r, w_h), (r_z, r_r, r_h), biases = w.chunk(3), r.chunk(3), b.chunk(6)

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        z = f[0](_clipped(node, x @ w_z.T + h @ r_z.T + biases[0] + biases[3]))
        reset = f[0](_clipped(node, x @ w_r.T + h @ r_r.T + biases[1] + biases[4]))
        late = reset * (h @ r_h.T + biases[5])
        early = (reset * h) @ r_h.T + biases[5]
        inner = late if node.get("linear_before_reset", 0) else early
        new = f[1](_clipped(node, x @ w_h.T + inner + biases[2]))
        return ((1 - z) * new + z * h,)

    return step


def _rnn(node: Node, f: list[Activation], w: Tensor, r: Tensor, b: Tensor, p: Tensor | None) -> Cell:
    wb, rb = b.chunk(2)
    return lambda x, state: (f[0](_clipped(node, x @ w.T + state[0] @ r.T + wb + rb)),)


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
    states = 2 if cell is _lstm else 1
    if node.get("input_forget", 0) or "activation_alpha" in node.attributes or "activation_beta" in node.attributes:
        raise NotImplementedError("a coupled forget gate, or activations with parameters")
    directions, hidden = w.shape[0], r.shape[-1]
    names = node.get("activations", [])
    names = [n.decode() if isinstance(n, bytes) else n for n in names] or defaults * directions
    if any(name.lower() not in _ACTIVATIONS for name in names):
        raise NotImplementedError(f"activations {names}")
    by_batch = node.get("layout", 0)
    if by_batch:
        x, h, c = (None if value is None else value.swapaxes(0, 1) for value in (x, h, c))  # type: ignore[assignment]
    steps, batch = x.shape[0], x.shape[1]
    if b is None:
        b = torch.zeros(directions, 2 * gates * hidden, dtype=x.dtype)
    zeros = torch.zeros(directions, batch, hidden, dtype=x.dtype)
    begin = [zeros if value is None else value for value in (h, c)][:states]
    length = torch.full((batch,), steps) if lengths is None else lengths.long()
    reverse = node.get("direction", "forward") == "reverse"
    outputs, last = [], []
    for way in range(directions):
        chosen = [_ACTIVATIONS[name.lower()] for name in names[way * len(defaults) :][: len(defaults)]]
        step = cell(node, chosen, w[way], r[way], b[way], None if p is None else p[way])
        backwards = reverse or way == 1
        state = tuple(value[way] for value in begin)
        seen = torch.zeros(steps, batch, hidden, dtype=x.dtype)
        for at in reversed(range(steps)) if backwards else range(steps):
            alive = (at < length)[:, None]  # a sequence that has ended keeps its state, and gives zeros
            state = tuple(torch.where(alive, new, old) for new, old in zip(step(x[at], state), state, strict=True))
            seen[at] = torch.where(alive, state[0], torch.zeros_like(state[0]))
        outputs.append(seen)
        last.append(state)
    y = torch.stack(outputs, dim=1)
    ends = tuple(torch.stack([state[i] for state in last]) for i in range(states))
    if by_batch:
        return (y.permute(2, 0, 1, 3), *(end.swapaxes(0, 1) for end in ends))
    return (y, *ends)


RECURRENT: dict[str, Callable[..., State]] = {
    "LSTM": partial(_recurrent, _lstm, 4, ["Sigmoid", "Tanh", "Tanh"]),
    "GRU": partial(_recurrent, _gru, 3, ["Sigmoid", "Tanh"]),
    "RNN": partial(_recurrent, _rnn, 1, ["Tanh"]),
}

"""Autograd's backward pass in Python, for tensors on a device that is not there.

PyTorch's own engine hands each device's nodes to a thread of that device, which it starts for devices that exist.
Here the same nodes are called in the same order (the one made last goes first) from the thread that asks.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


@contextmanager
def python_backward() -> Iterator[None]:
    """`Tensor.backward` and `torch.autograd.grad` work as below inside the block; no graph of the backward is kept."""
    with mock.patch.object(torch.autograd, "_engine_run_backward", _run):
        yield


def _run(outputs, grads, keep_graph, create_graph, inputs, allow_unreachable, accumulate_grad):
    """What the engine is called with; gradients of `inputs` where it is not to accumulate in leaves."""
    if create_graph:
        raise NotImplementedError("python_backward keeps no graph of the backward pass")
    roots = [get_gradient_edge(x) for x in outputs]
    edges = [] if accumulate_grad else [get_gradient_edge(x) for x in inputs]
    found: dict[tuple[int, int], Tensor] = {}
    nodes, waiting = _reached([edge.node for edge in roots])
    buffers: dict[int, dict[int, Tensor]] = {}
    ready, order = [], itertools.count()

    def give(node, number, grad):
        buffer = buffers.setdefault(id(node), {})
        buffer[number] = buffer[number] + grad if number in buffer else grad

    def release(node):
        leaf = not node.next_functions
        heapq.heappush(ready, (-(1 << 63) if leaf else -node._sequence_nr(), next(order), node))

    with torch.no_grad():
        for edge, grad in zip(roots, grads):
            give(edge.node, edge.output_nr, grad)
        for node in nodes.values():
            if not waiting[id(node)]:
                release(node)
        while ready:
            node = heapq.heappop(ready)[2]
            buffer = buffers.pop(id(node), {})
            if edges:
                found |= {(id(node), number): grad for number, grad in buffer.items()}
            results = _call(node, buffer, accumulate_grad)
            for (after, number), grad in zip(node.next_functions, results):
                if after is None:
                    continue
                if grad is not None:
                    give(after, number, _as_declared(grad, after, number))
                waiting[id(after)] -= 1
                if not waiting[id(after)]:
                    release(after)
    return tuple(found.get((id(edge.node), edge.output_nr)) for edge in edges)


def _reached(roots: list) -> tuple[dict[int, object], Counter[int]]:
    """Nodes by id (which is a node's own as long as somebody holds it), and how many others give each a gradient."""
    nodes, givers, todo = {}, Counter(), list(roots)
    while todo:
        node = todo.pop()
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        for after, _ in node.next_functions:
            if after is not None:
                givers[id(after)] += 1
                todo.append(after)
    return nodes, givers


def _call(node, buffer: dict[int, Tensor], accumulate: bool) -> tuple[Tensor | None, ...]:
    """Gradients for the nodes that follow; a leaf's own is put into its `grad` where they are to accumulate."""
    if not node.next_functions:
        if accumulate and buffer:
            _accumulate(node.variable, buffer[0])
        return ()
    if not buffer:
        return (None,) * len(node.next_functions)
    grads = [buffer.get(i) for i in range(len(node._input_metadata))]
    results = node.apply(*grads) if hasattr(node, "apply") else node(*grads)
    return results if isinstance(results, tuple) else (results,)


def _accumulate(leaf: Tensor, grad: Tensor) -> None:
    """The gradient itself becomes `leaf.grad` where it lies in memory as the leaf does, else a copy."""
    if leaf.grad is not None:
        leaf.grad += grad
    else:
        leaf.grad = grad.detach() if grad.stride() == leaf.stride() else grad.clone()


def _as_declared(grad: Tensor, node, number: int) -> Tensor:
    """In the shape and dtype of what the node gave in the forward pass, as the engine makes it."""
    declared = node._input_metadata[number]
    if grad.shape != declared.shape:
        grad = grad.sum_to_size(declared.shape)
    return grad if grad.dtype == declared.dtype else grad.to(declared.dtype)

"""Which gradients the backward that runs now is for."""

from collections.abc import Iterator

import torch
from torch.utils._pytree import tree_map


def wanted_gradients(ctx) -> tuple:
    """`ctx.needs_input_grad`, without what the running backward passes by.

    `needs_input_grad` says what could get a gradient, from the forward on. A backward that is for
    some tensors only (`torch.autograd.grad(loss, image)`, `loss.backward(inputs=weights)`) wants
    less: PyTorch's own ops leave out the rest, an op of ours learns it here. To be called in a
    backward, on the thread that runs it.
    """
    nodes = (node for node, _ in ctx.next_functions if node is not None)
    return tree_map(lambda needed: needed and _is_wanted(nodes), ctx.needs_input_grad)


def _is_wanted(nodes: Iterator) -> bool:
    """Whether the engine goes on to the next of `nodes`: one for each gradient that could be."""
    try:
        return torch._C._will_engine_execute_node(next(nodes))
    except RuntimeError:  # a leaf that torch.autograd.grad asks for, which the engine does not say
        return True

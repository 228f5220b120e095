"""The sequence class every network is built of."""

from torch import nn


class Sequence(nn.Sequential):
    """An `nn.Sequential` that a backend may run as a whole.

    Children, state_dict keys, indexing and printing are those of `nn.Sequential`. Under
    `backend("eager")` the children run one by one: pad, convolution, norm and activation are the
    ordinary PyTorch modules that published checkpoints expect. There are no fused steps yet, so
    `backend("fused")` runs the children as well. Networks call a `Sequence` as a whole and never
    its children one by one, so that fused steps need no change in them.
    """

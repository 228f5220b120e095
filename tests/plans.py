"""Networks and sequences for the tests of the plan, and the comparison with PyTorch's layers."""

import copy

import torch
from torch import nn

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import backend

INSTANCE, BATCH = networks.get_norm_layer("instance"), networks.get_norm_layer("batch")
NETWORKS = {
    "global": lambda norm: networks.GlobalGenerator(5, 3, 4, 2, 2, norm),
    "local": lambda norm: networks.LocalEnhancer(5, 3, 4, 1, 1, 2, 2, norm),
    "features": lambda norm: networks.MultiscaleDiscriminator(5, 4, 2, norm, False, 2, True),
    "prediction": lambda norm: networks.MultiscaleDiscriminator(5, 4, 2, norm, True, 2, False),
    "patch": lambda norm: networks.NLayerDiscriminator(5, 4, 2, norm, True, True),
    "block": lambda norm: networks.ResnetBlock(5, "reflect", norm),
    "encoder": lambda norm: networks.Encoder(5, 3, 4, 1, norm),
}


def unit(c=3, out=4):
    return [nn.ReflectionPad2d(1), nn.Conv2d(c, out, 3), nn.InstanceNorm2d(out), nn.ReLU(True)]


def flat(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in result for t in flat(part)]


def call(net, x):
    if isinstance(net, networks.Encoder):
        return net(x, (torch.arange(x.shape[3]) // 5).expand(x.shape[0], 1, *x.shape[2:]))
    return net(x)


def gradients(net, x, choice):
    """Outputs, and the gradients of x and of every parameter where there are any."""
    net, x = copy.deepcopy(net), x.detach().clone().requires_grad_(x.requires_grad)
    with backend(choice):
        outputs = flat(call(net, x))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    torch.autograd.backward(outputs, cotangents)
    return outputs, [x.grad, *(p.grad for p in net.parameters())]


def assert_same(net, x, tol=1e-9):
    for part, expected in zip(gradients(net, x, "fused"), gradients(net, x, "eager"), strict=True):
        scale = max(e.norm().item() for e in expected if e is not None)
        for n, (a, e) in enumerate(zip(part, expected, strict=True)):
            assert (a is None) == (e is None), n
            if e is not None:
                assert (a.shape, a.dtype) == (e.shape, e.dtype)
                assert (a - e).norm().item() <= tol * scale, n


def picture(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype).requires_grad_()

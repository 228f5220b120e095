"""The networks against the recorded originals: outputs, gradients, state_dict shapes."""

import json
import math

import pytest
import torch

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import InputError
from pix2pixhd_fast.nn.losses import feature_matching_loss
from tests.helpers import GOLDEN, assert_close_l2, cancelled_bias

INSTANCE, BATCH = networks.get_norm_layer("instance"), networks.get_norm_layer("batch")

BUILD = {
    "generator_global": lambda: networks.GlobalGenerator(36, 3, 8, 2, 2, INSTANCE),
    "generator_local": lambda: networks.LocalEnhancer(36, 3, 4, 2, 2, 1, 1, INSTANCE),
    "generator_local2": lambda: networks.LocalEnhancer(36, 3, 4, 1, 1, 2, 1, INSTANCE),
    "generator_rgb_odd": lambda: networks.GlobalGenerator(5, 3, 4, 1, 2, INSTANCE),
    "generator_batchnorm": lambda: networks.GlobalGenerator(36, 3, 4, 1, 1, BATCH),
    "encoder": lambda: networks.Encoder(3, 3, 4, 2, INSTANCE),
    "discriminator_multiscale": lambda: networks.MultiscaleDiscriminator(
        39, 8, 3, INSTANCE, False, 3, True
    ),
    "discriminator_odd": lambda: networks.MultiscaleDiscriminator(
        5, 4, 3, INSTANCE, False, 2, True
    ),
    "discriminator_sigmoid": lambda: networks.MultiscaleDiscriminator(
        39, 4, 2, INSTANCE, True, 2, False
    ),
}


def flatten(out, prefix="out"):
    """Name tensors as the recordings do: out, or out.<scale>.<layer>."""
    if isinstance(out, torch.Tensor):
        return {prefix: out}
    return {k: v for i, o in enumerate(out) for k, v in flatten(o, f"{prefix}.{i}").items()}


@pytest.mark.parametrize("name", BUILD)
def test_golden(name, golden, backend_name):
    data = golden(name)
    net = BUILD[name]()
    batch = name == "generator_batchnorm"
    prefix = "net/param/"
    net.load_state_dict(
        {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    )
    inputs = [data["in.0"].requires_grad_(), *([data["in.1"]] if "in.1" in data else [])]
    outputs = flatten(net(*inputs))
    assert set(outputs) == {k for k in data if k.startswith("out")}
    for key, value in outputs.items():
        assert_close_l2(value, data[key], 1e-4, key)
    torch.autograd.backward(list(outputs.values()), [data[f"cot/{k}"] for k in outputs])
    assert_close_l2(inputs[0].grad, data["ingrad.0"], 1e-4, "ingrad.0")
    for key, p in net.named_parameters():
        recorded = data[f"net/grad/{key}"]
        if not cancelled_bias(net, key):
            assert_close_l2(p.grad, recorded, 1e-4, key)
        else:  # the true value is 0; both are rounding noise, next to the gradient of the weight
            scale = data[f"net/grad/{key.removesuffix('bias')}weight"].norm()
            assert (p.grad - recorded).norm() <= 1e-4 * scale, key
            if backend_name == "fused" and not batch:
                assert not p.grad.any(), key


def shapes_of(expression):
    """Build what a key of state_dict_shapes.json says: GlobalGenerator(36,3,ngf=64,norm=batch)."""
    name, arguments = expression.removesuffix(")").split("(")
    args, kwargs = [], {}
    for part in filter(None, arguments.split(",")):
        key, _, value = part.rpartition("=")
        value = value if value in ("instance", "batch") else json.loads(value.lower())
        kwargs.update({key: value}) if key else args.append(value)
    norm = kwargs.pop("norm", "instance")
    if name != "Vgg19":
        kwargs["norm_layer"] = networks.get_norm_layer(norm)
    with torch.device("meta"):
        return {
            k: list(v.shape)
            for k, v in getattr(networks, name)(*args, **kwargs).state_dict().items()
        }


EXPRESSIONS = json.loads((GOLDEN / "state_dict_shapes.json").read_text())


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_state_dict_shapes(expression):
    assert shapes_of(expression) == EXPRESSIONS[expression]


def test_weights_init_draws_the_originals_distributions():
    torch.manual_seed(0)
    net = networks.define_G(36, 3, 16, "local", norm="batch")
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    drawn = torch.cat([m.weight.flatten() for m in convs])
    assert abs(drawn.std().item() - 0.02) < 2e-4 and abs(drawn.mean().item()) < 1e-4
    scales = torch.cat([m.weight for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert abs(scales.mean().item() - 1) < 2e-3 and abs(scales.std().item() - 0.02) < 2e-3


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("dropout", [False, True])
def test_resnet_block(padding, dropout):
    block = networks.ResnetBlock(4, padding, INSTANCE, use_dropout=dropout).eval()
    x = torch.randn(2, 4, 5, 6)
    mode = {"zero": "constant"}.get(padding, padding)
    convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
    assert any(isinstance(m, torch.nn.Dropout) for m in block.modules()) == dropout
    assert f"conv_block.{(3 if padding == 'zero' else 5) + dropout}.weight" in block.state_dict()

    def conv_norm(y, conv):
        y = torch.nn.functional.pad(y, (1, 1, 1, 1), mode=mode)
        return torch.nn.functional.instance_norm(
            torch.nn.functional.conv2d(y, conv.weight, conv.bias)
        )

    expected = x + conv_norm(conv_norm(x, convs[0]).relu(), convs[1])
    assert_close_l2(block(x), expected, 1e-5, "block")


def test_n_layer_discriminator_returns_every_layer_or_the_prediction():
    x = torch.randn(1, 5, 32, 48)
    torch.manual_seed(0)
    features = networks.NLayerDiscriminator(5, 4, 3, INSTANCE, getIntermFeat=True)
    torch.manual_seed(0)
    plain = networks.NLayerDiscriminator(5, 4, 3, INSTANCE)
    assert [f.shape[1] for f in features(x)] == [4, 8, 16, 32, 1]
    assert_close_l2(features(x)[-1], plain(x), 1e-6, "prediction")
    assert list(plain.state_dict())[-1] == "model.11.bias"
    sigmoid = networks.NLayerDiscriminator(5, 4, 3, INSTANCE, True, True)(x)
    assert len(sigmoid) == 6 and 0 < sigmoid[-1].min() and sigmoid[-1].max() < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_keeps_a_gradient_in_16_bits(dtype):
    """A prediction that is surely real is far from "fake", and D must be able to come back."""
    net = networks.define_D(5, 4, 1, use_sigmoid=True, num_D=1, getIntermFeat=True)
    bias = net.scale0_layer2[0].bias
    bias.data.fill_(12.0)
    with torch.autocast("cpu", dtype):
        loss = networks.GANLoss(use_lsgan=False)(net(torch.randn(1, 5, 16, 16)), False)
    loss.backward()
    assert loss.item() == pytest.approx(12, rel=0.02)
    assert bias.grad.item() == pytest.approx(1, rel=0.02)


def test_bce_with_features_sees_probabilities():
    net = networks.define_D(5, 4, 3, use_sigmoid=True, num_D=2, getIntermFeat=True)
    result = net(torch.randn(1, 5, 32, 48) * 50)
    assert [len(scale) for scale in result] == [5, 5]
    assert torch.isfinite(networks.GANLoss(use_lsgan=False)(result, True))


@pytest.mark.parametrize(
    ("use_lsgan", "real", "fake"),
    [(True, 0.25 + 0.81, 0.25), (False, -math.log(0.5) - math.log(0.1), -math.log(0.5))],
)
def test_gan_loss_sums_scales(use_lsgan, real, fake):
    scales = [[torch.zeros(3), torch.tensor([0.5, 0.5])], [torch.tensor([0.1, 0.1])]]
    loss = networks.GANLoss(use_lsgan=use_lsgan)
    assert loss(scales, True).item() == pytest.approx(real, rel=1e-5)
    assert loss(scales[0], False).item() == pytest.approx(fake, rel=1e-5)


def test_feature_matching_weighs_layers_and_scales():
    fake = [[torch.full((2, 3), 2.0), torch.zeros(4), torch.zeros(1)] for _ in range(2)]
    real = [[torch.zeros(2, 3), torch.full((4,), 3.0), torch.ones(1)] for _ in range(2)]
    # per scale 4 / 2 layers * (2 + 3), averaged over two scales; the prediction does not count
    assert feature_matching_loss(fake, real).item() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: networks.get_norm_layer("layer"), "instance or batch"),
        (lambda: networks.define_G(3, 3, 4, "unet"), "global, local or encoder"),
        (lambda: networks.ResnetBlock(4, "mirror", INSTANCE), "reflect, replicate or zero"),
        (lambda: networks.GlobalGenerator(3, 3, 4, n_blocks=-1), "n_blocks"),
    ],
)
def test_refuses(call, words):
    with pytest.raises(InputError, match=words):
        call()

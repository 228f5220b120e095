"""Four training steps against those of the original, recorded."""

import pytest
import torch

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import Options, Pix2PixHD
from pix2pixhd_fast.nn.encoder import instance_mean
from tests.helpers import assert_close_l2, cancelled_bias

OPTIONS = dict(
    netG="local",
    ngf=4,
    n_downsample_global=2,
    n_blocks_global=1,
    n_blocks_local=1,
    ndf=8,
    instance_feat=True,
    nef=4,
    n_downsample_E=2,
    no_vgg_loss=True,
)
RECORDED_LOSSES = ("G_GAN", "G_GAN_Feat", "D_real", "D_fake")


def start_of_the_recording():
    """The networks before the first recorded step.

    The parameters in the recording are those after its four updates (arrays that share memory with
    the parameters). The start follows from seed 1010: all three networks are built, then
    initialised. That it is the start is checked below, by weights that get no gradient and by the
    first picture.
    """
    instance = networks.get_norm_layer("instance")
    torch.manual_seed(1010)
    built = {
        "G": networks.LocalEnhancer(39, 3, 4, 2, 1, 1, 1, instance),
        "D": networks.MultiscaleDiscriminator(39, 8, 3, instance, False, 2, True),
        "E": networks.Encoder(3, 3, 4, 2, instance),
    }
    return {letter: net.apply(networks.weights_init) for letter, net in built.items()}


@pytest.fixture
def recorded(golden):
    return golden("training_trajectory")


@pytest.fixture
def model():
    model = Pix2PixHD(Options(**OPTIONS), device="cpu")
    start = start_of_the_recording()
    for letter, net in model.networks().items():
        net.load_state_dict(start[letter].state_dict())
    return model


def test_start_is_the_recorded_one(model, recorded):
    absent = [c for c in range(35) if c not in recorded["label"].unique()]
    for letter, key in (("G", "model1_1.1.weight"), ("D", "scale1_layer0.0.weight")):
        weight = model.networks()[letter].state_dict()[key]
        assert torch.equal(weight[:, absent], recorded[f"{letter}/param/{key}"][:, absent])


def test_four_steps(model, recorded, backend_name):
    batch = {key: recorded[key] for key in ("label", "inst", "image")}
    assert_close_l2(model.synthesize(**batch), recorded["fake0"], 1e-4, "first picture")
    for step, expected in enumerate(recorded["losses"]):
        losses = model.training_step(batch)
        for name, value in zip(RECORDED_LOSSES, expected, strict=True):
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-3), f"{name} {step}"
    assert_close_l2(model.last_fake, recorded["fake_last"], 1e-2, "last picture")
    start = start_of_the_recording()
    for letter, net in model.networks().items():
        before = dict(start[letter].named_parameters())
        moved, expected = [], []
        for key, value in net.named_parameters():
            if not cancelled_bias(net, key):  # others move by rounding noise
                moved.append((value - before[key]).flatten())
                expected.append((recorded[f"{letter}/param/{key}"] - before[key]).flatten())
        assert_close_l2(torch.cat(moved), torch.cat(expected), 1e-2, f"movement of {letter}")


@pytest.mark.parametrize("size", [(3, 5), (300, 400)])
def test_instance_mean_is_the_mean(size):
    features = torch.rand(2, 3, *size, dtype=torch.float64) + 1
    ids = torch.randint(-3, 4, (2, 1, *size)) + 2**40
    expected = torch.empty_like(features)
    for n in range(2):
        for i in ids[n].unique():
            inside = ids[n, 0] == i
            expected[n, :, inside] = features[n, :, inside].mean(1, keepdim=True)
    # measured 1.1e-6 for 120,000 pixels
    assert_close_l2(instance_mean(features.float(), ids), expected, 3e-6, "float32")
    assert_close_l2(instance_mean(features, ids), expected, 1e-14, "float64")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_instance_mean_gradient_of_a_large_instance(dtype):
    features = torch.zeros(1, 1, 128, 128, dtype=dtype, requires_grad=True)
    instance_mean(features, torch.zeros(1, 1, 128, 128, dtype=torch.int32)).backward(
        torch.ones_like(features)
    )
    assert torch.equal(features.grad, torch.ones_like(features))


def test_instance_mean_gradient():
    ids = torch.randint(0, 3, (2, 1, 4, 5))
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: instance_mean(x, ids), features)

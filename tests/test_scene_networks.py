"""Networks and the model on label maps: what they compute of the channels, in both backends."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import InputError, Pix2PixHD, accelerate, backend, describe_plan
from pix2pixhd_fast.nn.pending import materialise
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.semantic import SemanticMap
from pix2pixhd_fast.training.pool import ImagePool
from tests.helpers import assert_close_l2, cancelled_bias
from tests.plans import BATCH, INSTANCE, flat, unit
from tests.test_model import batch, options

LABELS = 6
# Channels: six labels, edges, three dense ones
NETWORKS = {
    "global": lambda norm: networks.GlobalGenerator(10, 3, 4, 2, 1, norm),
    "local": lambda norm: networks.LocalEnhancer(10, 3, 4, 1, 1, 3, 1, norm),
    "features": lambda norm: networks.MultiscaleDiscriminator(10, 4, 2, norm, False, 4, True),
    "prediction": lambda norm: networks.MultiscaleDiscriminator(10, 4, 2, norm, True, 2, False),
    "patch": lambda norm: networks.NLayerDiscriminator(10, 4, 2, norm, True, True),
}


def scene(size=(32, 48), n=2, dense=3, dtype=torch.float32, edges=True, ids=torch.uint8):
    """Blocks of labels with noise between them; an eighth of the pixels is in no class."""
    generator = torch.Generator().manual_seed(size[0])
    h, w = size
    labels = torch.randint(0, LABELS, (n, 1, h // 8 + 1, w // 8 + 1), generator=generator)
    labels = labels.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :h, :w].to(ids)
    labels[torch.rand(labels.shape, generator=generator) < 0.125] = 200
    marked = (torch.rand(n, 1, h, w, generator=generator) < 0.2).to(torch.uint8)
    more = torch.randn(n, dense, h, w, generator=generator).to(dtype) if dense else None
    return SemanticMap(labels, LABELS, marked if edges else None, more, ignore_label=200)


def run(net, given, choice):
    """Outputs, and gradients of the dense channels and of every parameter."""
    net = copy.deepcopy(net)
    dense = given.dense.clone().requires_grad_()
    with backend(choice):
        outputs = flat(net(given.with_dense(dense)))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    torch.autograd.backward(outputs, cotangents)
    named = {key: p.grad for key, p in net.named_parameters() if not cancelled_bias(net, key)}
    return outputs, {"dense": dense.grad, **named}


def assert_same(net, given, tol):
    outputs, gradients = run(net, given, "fused")
    expected, wanted = run(net, given, "eager")
    for n, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert y.dtype == e.dtype
        assert_close_l2(y, e, tol, f"output {n}")
    for key, g in gradients.items():
        assert_close_l2(g, wanted[key], tol, key)


@pytest.mark.parametrize("norm", [INSTANCE, BATCH], ids=["instance", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_read_a_map_as_its_channels(name, norm):
    # with batch norms and one unit of a ReLU on the other side, gradients are 3e-5 apart
    assert_same(NETWORKS[name](norm).double(), scene(dtype=torch.float64), 1e-9)
    net, given = NETWORKS[name](norm), scene(n=1)
    with torch.no_grad():
        for y, e in zip(flat(net(given)), flat(net(given.to_dense())), strict=True):
            assert_close_l2(y, e, 1e-5, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_in_float32(name):
    assert_same(NETWORKS[name](INSTANCE), scene(), 1e-5)


@pytest.mark.parametrize("size", [(17, 35), (33, 20), (9, 9)])
def test_odd_sizes_of_discriminators(size):
    assert_same(NETWORKS["features"](INSTANCE), scene(size, n=1), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_gives_the_dtypes_of_eager(name, dtype):
    net, found = NETWORKS[name](INSTANCE), {}
    for choice in ("eager", "fused"):
        with backend(choice), torch.autocast("cpu", dtype), torch.no_grad():
            found[choice] = flat(net(scene(dtype=dtype)))
    for y, e in zip(found["fused"], found["eager"], strict=True):
        assert y.dtype == e.dtype
        assert_close_l2(y, e, 0.1, name)  # as in test_plan


def test_weights_in_bf16():
    net = NETWORKS["local"](INSTANCE)
    exact = net(scene())
    for choice in ("eager", "fused"):
        with backend(choice):
            y = copy.deepcopy(net).bfloat16()(scene())
        assert y.dtype == torch.bfloat16
        assert_close_l2(y, exact, 0.15, choice)


@pytest.mark.parametrize(
    "given", [scene(dense=0), scene(dense=4, edges=False), scene(ids=torch.int32)]
)
def test_other_channels(given):
    net = networks.GlobalGenerator(given.num_channels, 3, 4, 1, 1, INSTANCE)
    assert_close_l2(net(given), net(given.to_dense()), 1e-5, "picture")
    assert net(given).is_contiguous(memory_format=torch.channels_last)


def written(monkeypatch):
    """The maps whose channels are written from now on."""
    found, to_dense = [], SemanticMap.to_dense
    monkeypatch.setattr(
        SemanticMap, "to_dense", lambda self, *a: found.append(self) or to_dense(self, *a)
    )
    return found


def test_channels_are_written_only_where_nothing_else_can_read_them(monkeypatch):
    given = scene(n=1)
    nets = {name: make(INSTANCE) for name, make in NETWORKS.items()}
    maps = written(monkeypatch)
    for name in ("global", "prediction", "patch"):
        nets[name](given)
    assert not maps
    nets["features"](given)  # four levels, of which the convolution knows three
    assert len(maps) == 1
    nets["prediction"].downsample = nn.AvgPool2d(2)
    nets["prediction"](given)
    assert len(maps) == 2
    with backend("eager"):
        nets["global"](given)
    assert len(maps) == 3


def test_another_average_is_taken_as_it_is():
    for layer in (nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1)):
        net = NETWORKS["prediction"](INSTANCE)
        net.downsample = layer
        assert_same(net, scene(), 1e-5)


def test_hooks_see_tensors():
    net, seen, given = NETWORKS["global"](INSTANCE), [], scene(n=1)
    expected = net(given)
    handle = net.model.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    assert_close_l2(net(given), expected, 1e-5, "a hook on the sequence")
    handle.remove()
    net.model[1].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    assert_close_l2(net(given), expected, 1e-5, "a hook on the convolution")
    assert [x.shape[1:] for x in seen] == [(10, 32, 48), (10, 38, 54)]


def test_features_raw_of_a_map():
    net, given = NETWORKS["features"](INSTANCE), scene()
    for raw, features in zip(net.features_raw(given), net(given), strict=True):
        for r, f in zip(raw, features, strict=True):
            assert_close_l2(materialise(r), f, 1e-5, "feature")


def test_an_activation_is_written_where_no_norm_follows():
    """By the three scales that read labels; behind it, a norm is left to do as ever."""
    raw = NETWORKS["features"](INSTANCE).features_raw(scene())
    assert [first.done for first, *_ in raw] == [True, True, True, False]
    assert not any(second.done for _, second, *_ in raw)


@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5])
def test_layers_in_place_behind_a_written_activation(slope):
    given, net = scene(), Sequence(*unit(10)[:2], nn.LeakyReLU(slope), nn.ELU(inplace=True))
    assert_same(net, given, 1e-5)


def test_sequences_of_others_read_maps():
    given = scene(dense=0)
    net = accelerate(nn.Sequential(nn.Identity(), *unit(7), nn.Sigmoid()))
    assert_close_l2(net(given), net(given.to_dense()), 1e-5, "a convolution")
    net = Sequence(nn.Sigmoid(), *unit(7))
    assert_close_l2(net(given), net(given.to_dense()), 1e-5, "a sigmoid first")
    transposed = Sequence(nn.ConvTranspose2d(7, 2, 3))
    assert_close_l2(transposed(given), transposed(given.to_dense()), 1e-5, "transposed")
    assert torch.equal(Sequence()(given), given.to_dense())
    with pytest.raises(InputError, match=r"weight must be \[K, 7, kh, kw\]"):
        Sequence(*unit(8))(given)


def test_describe_plan_says_who_reads_labels():
    text = describe_plan(NETWORKS["local"](INSTANCE))
    assert text.count("label_conv2d") == 4  # of G1 and three enhancers
    assert describe_plan(NETWORKS["features"](INSTANCE)).count("label_conv2d") == 4
    assert "label_conv2d" not in describe_plan(networks.Encoder(3, 3, 4, 1, INSTANCE))


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_in_one_graph(name):
    net, given = NETWORKS[name](INSTANCE), scene(n=1)
    compiled = torch.compile(lambda dense: net(given.with_dense(dense)), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    for y, e in zip(flat(compiled(given.dense)), flat(net(given)), strict=True):
        assert_close_l2(y, e, 1e-5, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_fake_tensors(name):
    with FakeTensorMode():
        labels = torch.zeros(1, 1, 32, 48, dtype=torch.uint8)
        dense = torch.zeros(1, 3, 32, 48).requires_grad_()
        outputs = flat(NETWORKS[name](INSTANCE)(SemanticMap(labels, LABELS, labels, dense)))
        sum(y.sum() for y in outputs).backward()
    real = flat(NETWORKS[name](INSTANCE)(scene(n=1)))
    assert [y.shape for y in outputs] == [y.shape for y in real]


MODELS = {
    "local": dict(netG="local"),
    "instance_feat": dict(instance_feat=True, num_D=3),
    "label_feat": dict(label_feat=True, no_instance=True),
    "load_features": dict(instance_feat=True, load_features=True, feat_num=2),
    "many labels": dict(label_nc=300),
    "ignored label": dict(ignore_label=3),
    "pool": dict(pool_size=1),
    "bf16": dict(amp="bf16"),
}


@pytest.mark.parametrize("size", [(16, 24), (19, 37), (3, 5)])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_that_of_the_channels(name, size):
    """The same fused step, once on the label map and once on its channels."""
    o = options(**MODELS[name])
    made = batch(size, 2, o)
    made["label"][0, 0, :2] = 3
    found = []
    for dense in (False, True):
        model = Pix2PixHD(o, device="cpu")
        if dense:
            write_channels(model)
        losses = model.training_step(made)
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((losses, model.last_fake, gradients))
    low = o.amp != "off"
    (losses, fake, gradients), (wanted, expected, others) = found
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(wanted[key].item(), rel=2e-2 if low else 1e-5), key
    assert_close_l2(fake, expected, 2e-2 if low else 1e-5, "picture")
    assert gradients.keys() == others.keys()
    scale = torch.cat([g.flatten() for g in others.values()]).norm()
    apart = torch.cat([(gradients[key] - others[key]).flatten() for key in others]).norm()
    assert apart <= (0.1 if low else 1e-4) * scale


def write_channels(model):
    encode = model.encode_inputs

    def written_out(given):
        inputs = encode(given)
        assert isinstance(inputs.scene, SemanticMap)
        return replace(inputs, scene=inputs.scene.to_dense())

    model.encode_inputs = written_out


@pytest.mark.parametrize("name", MODELS)
def test_eager_synthesis_is_the_same(name):
    o = options(**MODELS[name], isTrain=False)
    model, made = Pix2PixHD(o, device="cpu"), batch((19, 37), 1, o)
    made.pop("path")
    fused = model.synthesize(**made)
    with backend("eager"):
        inputs = model.encode_inputs(made)
        assert isinstance(inputs.scene, torch.Tensor)
        assert_close_l2(fused, model.synthesize(**made), 0.1 if o.amp != "off" else 1e-5, name)


def test_ids_come_as_bytes():
    o = options(instance_feat=True)
    inputs = Pix2PixHD(o, device="cpu").encode_inputs(batch((19, 37), o=o))
    seen = inputs.cropped_scene()
    assert seen.labels.dtype == seen.edges.dtype == torch.uint8 and seen.dense is None
    assert seen.labels.shape == (1, 1, 19, 37) and inputs.scene.shape[2:] == (20, 40)
    wide = options(label_nc=300)
    many = Pix2PixHD(wide, device="cpu").encode_inputs(batch(o=wide))
    assert many.scene.labels.dtype == torch.int32


def test_pool_keeps_pictures_with_their_scenes():
    """The same draws, on maps and on their channels; what is stored is read again."""
    given = [scene((16, 24), n=2) for _ in range(6)]
    given = [m.with_dense(m.dense + n) for n, m in enumerate(given)]
    maps, channels, resumed = (ImagePool(3) for _ in range(3))
    for n, m in enumerate(given):
        found = maps.query(m)
        assert isinstance(found, SemanticMap)
        assert torch.equal(found.to_dense(), channels.query(m.to_dense()))
        if n > 3:
            assert torch.equal(found.to_dense(), resumed.query(m).to_dense())
        resumed.load_state_dict(saved_and_loaded(maps.state_dict()), torch.device("cpu"))


def test_pool_of_an_older_checkpoint_goes_on():
    given = [scene((16, 24), n=2) for _ in range(8)]
    old, new = ImagePool(2), ImagePool(2)
    for m in given[:4]:
        old.query(m.to_dense())
    new.load_state_dict(saved_and_loaded(old.state_dict()), torch.device("cpu"))
    for m in given[4:]:
        found = new.query(m)
        found = found.to_dense() if isinstance(found, SemanticMap) else found
        assert torch.equal(found, old.query(m.to_dense()))
    assert any(isinstance(image, SemanticMap) for image in new.images)


def saved_and_loaded(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)

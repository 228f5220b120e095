"""`Pix2PixHD`: sizes, labels, features, precision, refusals."""

import pytest
import torch

from pix2pixhd_fast import InputError, Options, Pix2PixHD
from pix2pixhd_fast.semantic import one_hot, pad_by_edge
from tests.helpers import assert_close_l2
from tests.small_training import SMALL_NETWORKS


def options(**changes):
    return Options(
        **{**SMALL_NETWORKS, "label_nc": 5, "no_vgg_loss": True, "nThreads": 0, **changes}
    )


def batch(size=(16, 24), n=1, o=None, seed=0):
    o = o or options()
    g = torch.Generator().manual_seed(seed)
    h, w = size
    made = {
        "label": torch.randint(0, 5, (n, 1, h, w), generator=g, dtype=torch.uint8),
        "inst": torch.randint(0, 3000, (n, 1, h, w), generator=g, dtype=torch.int32),
        "image": torch.rand((n, o.output_nc, h, w), generator=g) * 2 - 1,
        "path": ["a"] * n,
    }
    if o.label_nc == 0:
        made["label"] = torch.rand((n, o.input_nc, h, w), generator=g)
    if o.load_features:
        made["feat"] = torch.rand((n, o.feat_num, h, w), generator=g)
    return made


def maps(made, *names):
    return {name: made[name] for name in names}


CONFIGURATIONS = {
    "global": {},
    "local": dict(netG="local"),
    "three levels": dict(netG="local", n_local_enhancers=2),
    "rgb": dict(label_nc=0, input_nc=4, no_instance=True, output_nc=1),
    "instance_feat": dict(instance_feat=True, num_D=3),
    "label_feat": dict(label_feat=True, no_instance=True),
    "load_features": dict(instance_feat=True, load_features=True, feat_num=2),
    "cross-entropy": dict(no_lsgan=True),
    "no feature matching": dict(no_ganFeat_loss=True),
    "batch norm": dict(norm="batch"),
    "pool": dict(pool_size=2),
    "bf16": dict(amp="bf16"),
    "fp16": dict(amp="fp16"),
    "vgg": dict(no_vgg_loss=False, vgg_weights="random"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("size", [(16, 24), (19, 37)])
def test_training_step_changes_every_network(name, size):
    o = options(**CONFIGURATIONS[name])
    model = Pix2PixHD(o, device="cpu")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # the scale of fp16 losses starts too high on purpose: the first steps find it and change
    # nothing
    for _ in range(12 if o.amp == "fp16" else 1):
        losses = model.training_step(batch(size, 2, o))
    assert list(losses) == ["G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake"]
    assert all(torch.isfinite(loss) and not loss.requires_grad for loss in losses.values())
    assert {name for name, loss in losses.items() if loss != 0} == set(model.loss_names)
    assert model.last_fake.shape == (2, o.output_nc, *size)
    for letter in model.networks():
        weights = [k for k in before if k.startswith(f"net{letter}") and k.endswith("weight")]
        state = model.state_dict()
        assert any(not torch.equal(before[k], state[k]) for k in weights), letter


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("size", [(1, 1), (16, 24), (13, 50)])
def test_synthesize_any_size(name, size):
    o = options(**CONFIGURATIONS[name])
    model = Pix2PixHD(o, device="cpu")
    made = batch(size, 1, o)
    made.pop("path")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = model.synthesize(**made)
    assert image.shape == (1, o.output_nc, *size)
    assert image.dtype == torch.float32 and not image.requires_grad
    assert torch.isfinite(image).all() and image.abs().max() <= 1
    after = model.state_dict()
    assert all(torch.equal(value, after[k]) for k, value in before.items())


def test_odd_sizes_give_the_picture_of_the_padded_map_cropped():
    model = Pix2PixHD(options(), device="cpu")
    made = batch((13, 18))
    wide = {k: pad_by_edge(made[k], (16, 20)) for k in ("label", "inst")}
    expected = model.synthesize(**wide)[..., :13, :18]
    assert torch.equal(model.synthesize(**maps(made, "label", "inst")), expected)


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = Pix2PixHD(options(seed=3), device="cpu").state_dict()
    drawn = torch.rand(1)  # building a model left the global state alone
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    second = Pix2PixHD(options(seed=3), device="cpu").state_dict()
    other = Pix2PixHD(options(seed=4), device="cpu").state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["netG.model.1.weight"], other["netG.model.1.weight"])


def test_ignored_pixels_belong_to_no_class():
    label = torch.tensor([[[[0, 255], [4, 2]]]], dtype=torch.uint8)
    channels = one_hot(label, 5, 255)
    assert channels.sum(1).tolist() == [[[1, 0], [1, 1]]]
    assert channels[0, 4, 1, 0] == 1
    inside = one_hot(label.clamp(max=4), 5, 4)
    assert inside[:, 4].sum() == 0 and inside.sum() == 2


def test_large_ids_and_dtypes_do_not_change_the_picture():
    model = Pix2PixHD(options(), device="cpu")
    made = batch()
    expected = model.synthesize(**maps(made, "label", "inst"))
    large = made["inst"].long() + 2**31
    assert torch.equal(model.synthesize(made["label"].int(), large), expected)
    unsigned = made["label"].to(torch.uint16), made["inst"].to(torch.uint32)
    assert torch.equal(model.synthesize(*unsigned), expected)


def test_feat_replaces_the_encoder():
    o = options(instance_feat=True)
    model = Pix2PixHD(o, device="cpu")
    made = batch(o=o)
    made.pop("path")
    feat = model.netE(made["image"], made["inst"]).detach()
    encoded = model.synthesize(**made)
    assert_close_l2(
        model.synthesize(made["label"], made["inst"], feat=feat), encoded, 1e-6, "image"
    )
    assert (model.synthesize(made["label"], made["inst"], feat=feat * 0) - encoded).abs().max() > 0


def test_fixed_global_generator_is_released():
    o = options(netG="local", niter_fix_global=1, niter=2, niter_decay=2)
    model = Pix2PixHD(o, device="cpu")
    inner, outer = model.netG.model[1].weight, model.netG.model1_1[1].weight
    start = inner.clone()
    model.optimizers.start_epoch(1)
    model.training_step(batch())
    assert torch.equal(inner, start) and inner.grad is None
    momentum = model.optimizers.G.state[outer]["exp_avg"].clone()
    model.optimizers.start_epoch(2)
    assert torch.equal(model.optimizers.G.state[outer]["exp_avg"], momentum)
    model.training_step(batch())
    assert not torch.equal(inner, start)


def test_schedule_is_the_originals():
    o = options(niter=2, niter_decay=4, lr=0.4)
    model = Pix2PixHD(o, device="cpu")
    rates = []
    for epoch in range(1, 7):
        model.optimizers.start_epoch(epoch)
        rates.append(model.optimizers.G.param_groups[0]["lr"])
    assert rates == pytest.approx([0.4, 0.4, 0.4, 0.3, 0.2, 0.1])


def test_pool_returns_past_pictures():
    model = Pix2PixHD(options(pool_size=3), device="cpu")
    pictures = [torch.full((1, 1, 1, 1), float(i)) for i in range(60)]
    answers = [int(model.pool.query(p).item()) for p in pictures]
    assert answers[:3] == [0, 1, 2]
    past = [i for i in range(3, 60) if answers[i] != i]
    assert 15 < len(past) < 45 and all(answers[i] < i for i in past)


REFUSED = {
    "no image": (lambda m: m.pop("image"), "image"),
    "no inst": (lambda m: m.pop("inst"), "inst"),
    "id too large": (lambda m: m["label"].fill_(7), "7: label_nc must be larger"),
    "negative id": (lambda m: m.update(label=m["label"].int() - 9), "outside"),
    "float label": (lambda m: m.update(label=m["label"].float()), "integer ids"),
    "one-hot label": (lambda m: m.update(label=torch.zeros(1, 5, 16, 24).int()), r"\[N, 1, H, W\]"),
    "byte image": (lambda m: m.update(image=m["image"].byte()), "image must hold floating"),
    "other size": (lambda m: m.update(inst=m["inst"][..., :-1]), "inst must be"),
    "grey image": (lambda m: m.update(image=m["image"][:, :1]), "image must be"),
    "no batch axis": (lambda m: m.update(label=m["label"][0]), "label must be"),
    "empty": (lambda m: m.update({k: m[k][..., :0] for k in ("label", "inst", "image")}), "label"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_batches_before_any_work(name):
    model = Pix2PixHD(options(), device="cpu")
    made = batch()
    change, words = REFUSED[name]
    change(made)
    before = model.netG.model[1].weight.clone()
    with pytest.raises(InputError, match=words):
        model.training_step(made)
    assert torch.equal(model.netG.model[1].weight, before)


def test_refuses_impossible_use():
    with pytest.raises(InputError, match="isTrain"):
        Pix2PixHD(options(isTrain=False), device="cpu").training_step(batch())
    with pytest.raises(InputError, match="instance features"):
        made = batch()
        model = Pix2PixHD(options(instance_feat=True), device="cpu")
        model.synthesize(made["label"], made["inst"])
    with pytest.raises(InputError, match="device"):
        Pix2PixHD(options(), device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="0 CUDA devices"):
            Pix2PixHD(options(), device="cuda")


def test_works_on_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        model = Pix2PixHD(options(netG="local", no_vgg_loss=False, vgg_weights="random"), "cpu")
        made = {
            "label": torch.zeros(1, 1, 64, 96, dtype=torch.uint8),
            "inst": torch.zeros(1, 1, 64, 96, dtype=torch.int32),
            "image": torch.zeros(1, 3, 64, 96),
        }
        losses = model.training_step(made)
        assert set(losses) == {"G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake"}
        assert model.synthesize(**maps(made, "label", "inst")).shape == (1, 3, 64, 96)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (1, 40)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_trains_on_tiny_pictures(size, norm):
    o = options(norm=norm, no_vgg_loss=False, vgg_weights="random", num_D=4, pool_size=1)
    model = Pix2PixHD(o, device="cpu")
    losses = model.training_step(batch(size, o=o))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.last_fake.shape[2:] == size


@pytest.mark.parametrize("name", ["meta", "mps", "xla"])
def test_only_the_cpu_and_cuda_are_devices(name):
    with pytest.raises(InputError, match=f"device must be .* got '{name}'"):
        Pix2PixHD(options(), device=name)


def test_every_gpu_id_is_a_number():
    with pytest.raises(InputError, match="gpu_ids"):
        Pix2PixHD(options(gpu_ids="0,x", device="auto"))

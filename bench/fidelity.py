"""How far two trainings of the same networks on the same real scenes drift apart, as a table.

    python -m bench.fidelity                          fused against eager
    torchrun --nproc_per_node 2 -m bench.fidelity     two processes, micro-batches, against one

A small G (global, ngf 16), two scales of D, VGG with random weights. Adam divides a gradient by its
size, and an activation on the edge of a ReLU falls to either side: the last bit of a weight grows
from step to step. How much is the last line, a run from weights that are nudged by that bit; in
float64 (`--float64`) nothing but a mistake should show.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import torch
from torch import Tensor

from pix2pixhd_fast import Options, Pix2PixHD, backend
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.model import Batch, Inputs
from pix2pixhd_fast.training.distributed import ALONE, World, joined
from tests.helpers import CITYSCAPES, cancelled_bias

NETWORKS = dict(
    ngf=16, n_downsample_global=3, n_blocks_global=4, ndf=16, num_D=2, vgg_weights="random",
    nThreads=0, device="cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One way to train; `together`: with the other processes of torchrun."""

    by: str = "fused"
    nudged: bool = False
    micro_batch: int = 0
    together: bool = False


BACKENDS = {
    "fused, eager": (Run(), Run("eager")),
    "eager nudged, eager": (Run("eager", nudged=True), Run("eager")),
}
PROCESSES = {
    "two processes, one": (Run(together=True), Run()),
    "micro-batches, one": (Run(micro_batch=1), Run()),
    "one nudged, one": (Run(nudged=True), Run()),
}


@dataclass(frozen=True)
class Trained:
    """losses: float64 [steps, losses]; start, end: the weights of "G" and "D", float64."""

    losses: Tensor
    start: dict[str, Tensor]
    end: dict[str, Tensor]


def train(run: Run, o: Options, steps: int, dtype: torch.dtype, world: World) -> Trained:
    """Train from the weights that the seed of `o` gives."""
    world = world if run.together else ALONE
    with backend(run.by):
        model = Pix2PixHD(replace(o, micro_batch=run.micro_batch), "cpu", world)
        _use(dtype, model)
        if run.nudged:
            _nudge(model)
        start, losses = weights(model), []
        for batch in islice(batches(o, world), steps):
            found = world.means(model.training_step(batch))
            losses.append([found[name] for name in model.loss_names])
    return Trained(torch.tensor(losses, dtype=torch.float64), start, weights(model))


def batches(o: Options, world: World) -> Iterator[Batch]:
    """This process's share of the batches, epoch after epoch, as `train` reads them."""
    dataset = AlignedDataset(o)
    for epoch in count(1):
        yield from make_loader(dataset, o, epoch, 0, world.rank, world.size)


def weights(model: Pix2PixHD) -> dict[str, Tensor]:
    """Without biases that a norm takes away again: in eager they move by rounding noise."""
    return {
        letter: torch.cat(
            [
                p.detach().double().flatten()
                for key, p in net.named_parameters()
                if not cancelled_bias(net, key)
            ]
        )
        for letter, net in model.networks().items()
    }


def _use(dtype: torch.dtype, model: Pix2PixHD) -> None:
    """Let networks and what they read be of this type."""
    encode = model.to(dtype).encode_inputs

    def encode_in_dtype(batch: Batch) -> Inputs:
        inputs = encode(batch)
        scene = inputs.scene.to(dtype) if isinstance(inputs.scene, Tensor) else inputs.scene
        return replace(inputs, scene=scene, image=inputs.image.to(dtype))

    model.encode_inputs = encode_in_dtype


def _nudge(model: Pix2PixHD) -> None:
    random = torch.Generator().manual_seed(1)
    for net in model.networks().values():
        for p in net.parameters():
            noise = torch.randn(p.shape, generator=random, dtype=p.dtype)
            p.detach().mul_(1 + torch.finfo(p.dtype).eps * noise)


def differences(one: Trained, other: Trained) -> Iterator[Tensor]:
    """Relative: of the loss that differs most the mean over the steps and the worst step, then of G
    and of D the L2 distance of the weights, over their norm and over that of their movement."""
    losses = ((one.losses - other.losses) / other.losses).abs()
    yield from (losses.mean(0).max(), losses.max())
    for letter, end in other.end.items():
        distance = (one.end[letter] - end).norm()
        yield from (distance / end.norm(), distance / (end - other.start[letter]).norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=256, help="pixels; the height is half")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--dataroot", default=str(CITYSCAPES))
    asked = parser.parse_args()
    dtype = torch.float64 if asked.float64 else torch.float32
    torch.set_num_threads(1)
    places = dict(dataroot=asked.dataroot, seed=asked.seed, loadSize=asked.width)
    with joined(Options(device="cpu")) as world:
        o = Options(**NETWORKS, **places, batchSize=world.size)
        done: dict[Run, Trained] = {}
        if world.main:
            print("| | loss, mean | worst step | G | its movement | D | its movement |")
            print("|---|---|---|---|---|---|---|")
        for title, pair in (BACKENDS if world.size == 1 else PROCESSES).items():
            for run in pair:
                if run not in done and (world.main or run.together):
                    done[run] = train(run, o, asked.steps, dtype, world)
            if world.main:
                found = " | ".join(f"{value:.1e}" for value in differences(*map(done.get, pair)))
                print(f"| {title} | {found} |", flush=True)


if __name__ == "__main__":
    main()

"""The buffer of past synthesised pictures that the discriminator sees."""

import torch
from torch import Tensor

from pix2pixhd_fast.semantic import SemanticMap

Seen = Tensor | SemanticMap


class ImagePool:
    """Up to `size` past inputs of the discriminator (Shrivastava et al. 2017).

    `query(images)`, [N, C, H, W] as a tensor or a `SemanticMap` with the picture as its dense
    channels, returns a batch of the same shape: while the pool fills, the images themselves; then
    each image with probability 1/2 itself, else a random one of the pool, whose place it takes, so
    that a picture stays with its scene. A batch in which both forms meet (after a change of the
    backend, or with the checkpoint of a version that kept tensors only) is a tensor. With `size` 0
    the images are returned as they are. Draws come from a generator of its own.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size = size
        self.images: list[Seen] = []
        self.generator = torch.Generator().manual_seed(seed)

    def query(self, images: Seen) -> Seen:
        if self.size == 0:
            return images
        return _batch([self._exchange(image) for image in _single(images)])

    def _exchange(self, image: Seen) -> Seen:
        if len(self.images) < self.size:
            self.images.append(_cloned(image))
            return image
        keep, place = torch.rand(2, generator=self.generator).tolist()
        if keep < 0.5:
            return image
        index = int(place * self.size)
        old, self.images[index] = self.images[index], _cloned(image)
        return old

    def state_dict(self) -> dict:
        """The pictures, on the CPU, and the state of the generator."""
        return {
            "images": [_stored(image) for image in self.images],
            "rng": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Take over what `state_dict` returned; pictures go to `device`."""
        self.images = [_restored(image).to(device) for image in state["images"][: self.size]]
        self.generator.set_state(state["rng"])


def _single(images: Seen) -> list[Seen]:
    """The images of a batch: tensors [C, H, W], or maps of one image each."""
    if isinstance(images, Tensor):
        return list(images.detach())
    count = images.shape[0]
    return [images.each(lambda x, n=n: x[n : n + 1].detach()) for n in range(count)]


def _batch(images: list[Seen]) -> Seen:
    if not any(isinstance(image, Tensor) for image in images):
        return SemanticMap.cat(images)
    return torch.stack([i if isinstance(i, Tensor) else i.to_dense()[0] for i in images])


def _cloned(image: Seen) -> Seen:
    return image.clone() if isinstance(image, Tensor) else image.each(Tensor.clone)


def _stored(image: Seen) -> Tensor | dict:
    """What `torch.load(weights_only=True)` reads again."""
    if isinstance(image, Tensor):
        return image.cpu()
    kept = image.to("cpu")
    return {name: getattr(kept, name) for name in ("labels", "num_labels", "edges", "dense")}


def _restored(image: Tensor | dict) -> Seen:
    """Kept ids that are in no class are all the same one, from `num_labels` on."""
    if isinstance(image, Tensor):
        return image
    return SemanticMap(**image, ignore_label=max(image["num_labels"], int(image["labels"].max())))

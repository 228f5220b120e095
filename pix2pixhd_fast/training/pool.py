"""The buffer of past synthesised pictures that the discriminator sees."""

import torch
from torch import Tensor


class ImagePool:
    """Up to `size` past inputs of the discriminator (Shrivastava et al. 2017).

    `query(images)` [N, C, H, W] returns a batch of the same shape: while the pool fills, the images
    themselves; then each image with probability 1/2 itself, else a random one of the pool, whose
    place it takes. With `size` 0 the images are returned as they are. Draws come from a generator
    of its own.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size = size
        self.images: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def query(self, images: Tensor) -> Tensor:
        if self.size == 0:
            return images
        return torch.stack([self._exchange(image) for image in images.detach()])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        keep, place = torch.rand(2, generator=self.generator).tolist()
        if keep < 0.5:
            return image
        index = int(place * self.size)
        old, self.images[index] = self.images[index], image.clone()
        return old

    def state_dict(self) -> dict:
        """The pictures, on the CPU, and the state of the generator."""
        return {"images": [i.cpu() for i in self.images], "rng": self.generator.get_state()}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Take over what `state_dict` returned; pictures go to `device`."""
        self.images = [i.to(device) for i in state["images"][: self.size]]
        self.generator.set_state(state["rng"])

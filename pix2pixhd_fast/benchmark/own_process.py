"""The child of `memory.in_own_process`: standard input says what to run, its growth is printed."""

import json
import sys
from dataclasses import asdict

import torch

from pix2pixhd_fast.benchmark.memory import STEPS, growth
from pix2pixhd_fast.benchmark.request import Request
from pix2pixhd_fast.benchmark.targets import cases


def main() -> None:
    asked = json.load(sys.stdin)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in asked["request"].items()}
    given["sizes"] = tuple(tuple(size) for size in given["sizes"])
    request = Request(**given)
    torch.set_num_threads(asked["threads"])
    device = torch.device(request.device)
    # what libraries load for themselves must not count
    x = torch.rand(1, 8, 32, 32, device=device, requires_grad=True)
    torch.conv2d(x, torch.rand(8, 8, 3, 3, device=device)).sum().backward()
    (case,) = [c for c in cases(request) if (c.name, c.dtype) == (asked["name"], asked["dtype"])]

    def all_of_it() -> None:
        step = case.prepare(asked["backend"], case.dtype)
        for _ in range(STEPS):
            step()

    print(json.dumps(asdict(growth(all_of_it, device))))


if __name__ == "__main__":
    main()

"""Which launches of a kernel there are: recorded from its launcher, on tensors without memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


class Variant(NamedTuple):
    """One kernel as Triton would compile it for a launch.

    `types` of the arguments by name ("*bf16", "i32", "fp32", "constexpr"); `constants`, the values
    of those that are constexpr; `multiples_of_16`, which Triton takes as known; `options` of the
    launch (num_warps, num_stages, ...) where it gives any.
    """

    kernel: JITFunction
    types: Mapping[str, str]
    constants: Mapping[str, object]
    multiples_of_16: tuple[str, ...]
    options: Mapping[str, object]

    @property
    def label(self) -> str:
        """The types that the launch chooses, its named constants, its known multiples of 16."""
        pointers = [type[1:] for type in self.types.values() if type.startswith("*")]
        words = [" ".join(dict.fromkeys(type for type in pointers if type != "fp32")) or "fp32"]
        given = {**self.constants, **self.options}
        words += [f"{name}={value}" for name, value in given.items()]
        numbers = [name for name in self.multiples_of_16 if not self.types[name].startswith("*")]
        return " ".join(words + ([f"16|{','.join(numbers)}"] if numbers else []))


def launches(launcher: Callable, *arguments: object) -> list[Variant]:
    """The launches that `launcher(*arguments)` makes, without making them.

    Tensors are best on the device "meta", and count as aligned there. The launcher must not look at
    their values.
    """
    with _recording() as found:
        launcher(*arguments)
    return found


@contextmanager
def _recording() -> Iterator[list[Variant]]:
    found = []

    def record(kernel, *arguments, grid, warmup, **named):
        names = {name: named.pop(name) for name in list(named) if name in kernel.arg_names}
        bound = kernel.signature.bind(*arguments, **names)
        bound.apply_defaults()
        found.append(_variant(kernel, bound.arguments, named))

    with mock.patch.object(JITFunction, "run", record):
        yield found


def _variant(kernel: JITFunction, arguments: Mapping[str, object], options: dict) -> Variant:
    types, constants, multiples = {}, {}, []
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        fixed = parameter.do_not_specialize
        is_one = type(value) is int and value == 1 and not fixed
        if parameter.is_constexpr or value is None or is_one:
            types[name], constants[name] = "constexpr", value
            continue
        types[name] = parameter.annotation_type or _type_of(kernel, name, value)
        place = value.data_ptr() if isinstance(value, Tensor) else value
        if type(place) is int and place % 16 == 0 and not fixed:
            multiples.append(name)
    return Variant(kernel, types, constants, tuple(multiples), options)


def _type_of(kernel: JITFunction, name: str, value: object) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(
        f"{kernel.__name__}: {name} is a {type(value).__name__}, of which no variant can be made"
    )

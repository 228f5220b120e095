"""The execution model for device code: it finds every planted mistake and passes the sound twin."""

import pytest
import torch

from tests.cuda_on_cpu import HERE, SEEDS, DeviceError, Output, device_program

RACE = r"tile: (reads memory that nobody has written|(read|write)s what another thread)"
# What the model says of each mistake.
MISTAKES = {
    "missing_barrier": RACE,
    "missing_second_barrier": r"(reads|writes) what another thread (writes|reads), with no barrier",
    "missing_syncwarp": RACE,
    "read_past_the_end": r"0 bytes past the end of argument 0: is out of bounds",
    "read_before_the_begin": r"4 bytes before argument 0: is out of bounds",
    "write_past_the_end": r"0 bytes past the end of argument 1: is out of bounds",
    "index_past_a_shared_array": r"index is out of bounds of its array \(.*planted.cuh:\d+\)",
    "pointer_past_a_shared_array": r"past the end of .*tile: is out of bounds",
    "past_dynamic_shared_memory": r"past the end of dynamic shared memory: is out of bounds",
    "lane_does_not_arrive": r"waits at __shfl_xor_sync .*mask 0xffffffff for .*, which has ended",
    "lane_is_not_in_the_mask": r"is not in the mask 0x0000ffff it gives to __shfl_up_sync",
    "source_is_not_in_the_mask": r"reads lane 16, which is not in the mask 0x0000ffff",
    "uninitialised_shared": r"byte 252 of .*tile: reads memory that nobody has written",
    "ended_before_the_barrier": r"deadlock: .* waits at __syncthreads .* which has ended",
    "barrier_in_two_branches": r"waits at __syncthreads .* at another: __syncthreads",
    "lost_update": r"what another thread writes, with no barrier",
    "written_input": r"of argument 0: writes to an input",
    "signed_overflow": r"an integer multiplication overflows \(.*planted.cuh:\d+\)",
    "too_wide_a_shift": r"a shift is not below the width of its type \(.*planted.cuh:\d+\)",
    "two_blocks_write": r"writes what another thread writes, .*\(thread \(0, 0, 0\) of block",
    "memcpy_past_the_end": r"260 bytes at byte 0 of argument 1: is out of bounds",
    "unwritten_output": r"16 bytes of argument 1 were never written",
    "misaligned_vector": r"an address is not aligned for its type \(.*planted.cuh:\d+\)",
    "too_many_threads": r"cudaError_t 9",
}


# How many numbers come out; 64 elsewhere.
OUTPUTS = {"missing_barrier": 128, "lost_update": 1, "two_blocks_write": 2}


def run(name, sound, seed):
    """The 128 numbers that went in and what came out."""
    numbers = torch.arange(1, 129, dtype=torch.int32)
    out = torch.zeros(OUTPUTS.get(name, 64), dtype=torch.int32)
    out = Output(out, updated=name == "lost_update")
    device_program(HERE / "planted.cpp").run(name, numbers, out, sound, seed=seed)
    return numbers, out.tensor


@pytest.mark.parametrize("name", MISTAKES)
def test_finds_the_mistake_and_passes_the_sound_twin(name):
    for seed in SEEDS:
        run(name, True, seed)
        with pytest.raises(DeviceError, match=MISTAKES[name]):
            run(name, False, seed)
        run(name, True, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_intrinsics(seed):
    out = torch.empty(12, 32, dtype=torch.int32)
    device_program(HERE / "intrinsics.cpp").run("warp_values", Output(out), seed=seed)
    lanes = range(32)
    expected = [
        [5] * 32,
        [lane // 8 * 8 + 1 for lane in lanes],
        [lane - 3 if lane % 16 >= 3 else lane for lane in lanes],
        [lane + 3 if lane % 16 < 13 else lane for lane in lanes],
        [lane ^ 5 for lane in lanes],
        [6] * 16 + [5] * 16,
        [1] * 32,
        [1] * 16 + [0] * 16,
        [1] * 32,
        [(lane & -lane).bit_length() * 100 + 32 - lane.bit_length() for lane in lanes],
        [int(1.5 * min(lane + 1, 31)) for lane in lanes],
        [round(0.5 * lane) + max(lane, 30) - min(lane, 2) for lane in lanes],
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_block_intrinsics(seed):
    out = torch.empty(7, dtype=torch.int32)
    device_program(HERE / "intrinsics.cpp").run("block_values", Output(out), seed=seed)
    assert out.tolist() == [sum(range(96)), 95, 7, 255, 77, 0xF0, 48 * 10 + 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_and_bfloat16_round_as_pytorch_does(dtype):
    x = torch.tensor([0.1, -1.0, 3.14159, 65000.0, 1e-7, 0.0, -2.5e-5, 777.77])
    y = torch.empty(8)
    program = device_program(HERE / "intrinsics.cpp")
    program.run("twice_rounded", x, Output(y), dtype == torch.bfloat16, seed=0)
    assert torch.equal(y, (x.to(dtype) * 2).float())


def test_grids_have_three_dimensions():
    order = torch.empty(30, dtype=torch.int32)
    device_program(HERE / "intrinsics.cpp").run("block_numbers", Output(order), seed=0)
    assert order.tolist() == list(range(30))

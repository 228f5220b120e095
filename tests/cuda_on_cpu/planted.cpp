#include "planted.cuh"

namespace {

// `sound`: the kernel without its mistake.
template <typename Sound, typename Broken, typename... Arguments>
cudaError_t start(int64_t sound, int blocks, size_t shared, Sound* good, Broken* bad,
                  Arguments... arguments) {
  return pix2pixhd_fast::launch(sound ? good : bad, dim3(blocks), dim3(planted::kThreads), shared,
                                nullptr, arguments...);
}

}  // namespace

// Every kernel gets 128 numbers to read, and numbers to write: 64 unless the test says otherwise.
#define PLANT(name, blocks, shared, good, bad, ...)                      \
  extern "C" int name(int* in, int* out, int64_t sound) {                \
    return start(sound, blocks, shared, planted::good, planted::bad, in, \
                 out __VA_OPT__(, ) __VA_ARGS__);                        \
  }

PLANT(missing_barrier, 2, 0, reverse<true>, reverse<false>)
PLANT(missing_second_barrier, 1, 256, reverse_twice<true>, reverse_twice<false>)
PLANT(missing_syncwarp, 1, 0, swap_pairs<true>, swap_pairs<false>)
PLANT(read_past_the_end, 1, 0, shift, shift, sound ? 64 : 65)
PLANT(read_before_the_begin, 1, 0, shift, shift, sound ? 0 : -1)
PLANT(write_past_the_end, 1, 0, shift_written, shift_written, sound ? 0 : 1)
PLANT(index_past_a_shared_array, 1, 0, shift_shared<false>, shift_shared<false>, sound ? 0 : 1)
PLANT(pointer_past_a_shared_array, 1, 0, shift_shared<true>, shift_shared<true>, sound ? 0 : 1)
PLANT(past_dynamic_shared_memory, 1, 256, shift_dynamic, shift_dynamic, sound ? 0 : 1)
PLANT(lane_does_not_arrive, 1, 0, sum_half_warp, sum_half_warp, sound ? 0xffffu : planted::kAll)
PLANT(lane_is_not_in_the_mask, 1, 0, pass_up, pass_up, sound ? planted::kAll : 0xffffu)
PLANT(source_is_not_in_the_mask, 1, 0, pass_to_first, pass_to_first, sound ? 15 : 16)
PLANT(uninitialised_shared, 1, 0, fill_and_sum, fill_and_sum, sound ? 64 : 63)
PLANT(ended_before_the_barrier, 1, 0, leave_early, leave_early, sound ? 64 : 32)
PLANT(barrier_in_two_branches, 1, 0, two_branches<true>, two_branches<false>)
PLANT(lost_update, 2, 0, count_positive<true>, count_positive<false>)
PLANT(written_input, 1, 0, write_in<true>, write_in<false>)
PLANT(signed_overflow, 1, 0, overflow, overflow, sound ? 0 : 40000)
PLANT(too_wide_a_shift, 1, 0, shift_bits, shift_bits, sound ? 16 : 17)
PLANT(two_blocks_write, 2, 0, number_block, number_block, sound ? 0 : 1)
PLANT(memcpy_past_the_end, 1, 0, copy_bytes, copy_bytes, sound ? 256 : 260)
PLANT(unwritten_output, 1, 0, write_some, write_some, sound ? 64 : 60)

extern "C" int misaligned_vector(const int* in, int* out, int64_t sound) {
  return pix2pixhd_fast::launch(planted::copy_vector, dim3(1), dim3(16), 0, nullptr, in, out,
                                sound ? 4 : 3);
}

extern "C" int too_many_threads(const int* in, int* out, int64_t sound) {
  return pix2pixhd_fast::launch(planted::shift, dim3(1), dim3(sound ? 64 : 1025), 0, nullptr, in,
                                out, 0);
}

// Scatter on CUDA. Moves each small element once (read size + write size bytes). What describes the tensors travels in
// the parameters of the launches, up to 141 tensors in each: nothing is copied from the host's memory, nothing waits
// for the device, and a captured graph holds all that a replay needs. At 46 registers 5 blocks, 1,280 threads, are
// resident on a multiprocessor, one element under way in each. Not run on a GPU yet.
#include "../scatter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common.h"

namespace prunefuse::cuda {
namespace {

using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
constexpr int64_t kElementsPerBlock = 4 * kBlockThreads;

template <class Word>
__device__ void copy_element(const ScatterTarget& target, int64_t position) {
  static_cast<Word*>(target.dense)[dense_offset(target, target.rank, position)] =
      static_cast<const Word*>(target.small)[position];
}

// Bytes that the parameters of a kernel may take: more since CUDA 12.1.
constexpr size_t kParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;
constexpr int kFewTargets = 16;
constexpr int kManyTargets = static_cast<int>((kParameterBytes - 2 * sizeof(int64_t)) / sizeof(ScatterTarget));

// Some of a call's targets; the number of their last element is `end` - 1. A launch passes all of it, used or not.
template <int Capacity>
struct Targets {
  int64_t count, end;
  ScatterTarget of[Capacity];
};

template <int Capacity>
__global__ void __launch_bounds__(kBlockThreads) scatter_elements(const __grid_constant__ Targets<Capacity> targets) {
  const int64_t begin = targets.of[0].first, step = gridDim.x * kElementsPerBlock;
  for (int64_t base = begin + blockIdx.x * kElementsPerBlock; base < targets.end; base += step) {
    for (int64_t element = base + threadIdx.x; element < base + kElementsPerBlock && element < targets.end;
         element += kBlockThreads) {
      // The last target that starts at or before this element.
      int64_t low = 0, high = targets.count;
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (targets.of[middle].first <= element ? low : high) = middle;
      }
      const ScatterTarget& target = targets.of[low];
      const int64_t position = element - target.first;
      switch (target.element_size) {
        case 1:
          copy_element<uint8_t>(target, position);
          break;
        case 2:
          copy_element<uint16_t>(target, position);
          break;
        case 4:
          copy_element<uint32_t>(target, position);
          break;
        case 8:
          copy_element<uint64_t>(target, position);
          break;
        default:
          copy_element<ulonglong2>(target, position);
      }
    }
  }
}

template <int Capacity>
void launch(const ScatterWork& work, cudaStream_t stream) {
  const size_t all = work.targets.size();
  for (size_t first = 0; first < all; first += Capacity) {
    const size_t after = std::min(first + Capacity, all);
    const int64_t end = after < all ? work.targets[after].first : work.elements;
    Targets<Capacity> targets = {static_cast<int64_t>(after - first), end, {}};
    std::copy(work.targets.data() + first, work.targets.data() + after, targets.of);
    const int64_t blocks = divide_up(end - targets.of[0].first, kElementsPerBlock);
    launch_kernel(scatter_elements<Capacity>, {grid_for(blocks), kBlockThreads}, stream, targets);
  }
}

// By reference: a copy of a list would count a reference to every tensor.
void scatter_(const std::vector<Tensor>& dense, const std::vector<Tensor>& small, const std::vector<Tensor>& kept,
              const std::vector<int64_t>& kept_of_axis) {
  const ScatterWork work = plan_scatter(dense, small, kept, kept_of_axis, /*check_values=*/false);
  if (work.elements == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(dense[0].get_device_index());
  const cudaStream_t stream = current_stream(dense[0].get_device_index());
  if (work.targets.size() <= kFewTargets) {
    launch<kFewTargets>(work, stream);
  } else {
    launch<kManyTargets>(work, stream);
  }
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("scatter_", TORCH_BOX(&prunefuse::cuda::scatter_)); }

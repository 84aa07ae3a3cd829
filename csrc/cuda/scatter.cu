// Scatter on CUDA: one launch for all tensors of a model. Moves each small element once (read size + write size bytes)
// plus the descriptors. The descriptors go over in one copy of a few kilobytes from pageable memory, so the call cannot
// be captured in a CUDA graph; fusing happens once per run. At 46 registers 5 blocks, 1,280 threads, are resident on a
// multiprocessor, one element under way in each. Not run on a GPU yet.
#include "../scatter.h"

#include <torch/csrc/stable/library.h>

#include "common.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
constexpr int64_t kElementsPerBlock = 4 * kBlockThreads;

template <class Word>
__device__ void copy_element(const ScatterTarget& target, int64_t position) {
  static_cast<Word*>(target.dense)[dense_offset(target, target.rank, position)] =
      static_cast<const Word*>(target.small)[position];
}

__global__ void __launch_bounds__(kBlockThreads)
    scatter_elements(const ScatterTarget* targets, int64_t count, int64_t elements) {
  for (int64_t base = blockIdx.x * kElementsPerBlock; base < elements; base += gridDim.x * kElementsPerBlock) {
    for (int64_t element = base + threadIdx.x; element < base + kElementsPerBlock && element < elements;
         element += kBlockThreads) {
      // The last target that starts at or before this element.
      int64_t low = 0, high = count;
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (targets[middle].first <= element ? low : high) = middle;
      }
      const ScatterTarget& target = targets[low];
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

// By reference: a copy of a list would count a reference to every tensor.
void scatter_(const std::vector<Tensor>& dense, const std::vector<Tensor>& small, const std::vector<Tensor>& kept,
              const std::vector<int64_t>& kept_of_axis) {
  const ScatterWork work = plan_scatter(dense, small, kept, kept_of_axis, /*check_values=*/false);
  if (work.elements == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(dense[0].get_device_index());
  const cudaStream_t stream = current_stream(dense[0].get_device_index());
  const size_t bytes = work.targets.size() * sizeof(ScatterTarget);
  const Tensor descriptors = torch::stable::new_empty(dense[0], {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  STD_CUDA_CHECK(cudaMemcpyAsync(descriptors.data_ptr(), work.targets.data(), bytes, cudaMemcpyHostToDevice, stream));
  launch_kernel(scatter_elements, {grid_for(divide_up(work.elements, kElementsPerBlock)), kBlockThreads}, stream,
                static_cast<const ScatterTarget*>(descriptors.data_ptr()), static_cast<int64_t>(work.targets.size()),
                work.elements);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("scatter_", TORCH_BOX(&prunefuse::cuda::scatter_)); }

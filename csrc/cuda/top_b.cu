// The b best utilities on CUDA: a stable radix sort of (order key, row), largest first, so that ties keep the lower row
// first. Moves about 4 passes * 2 * N * (key + 8) bytes; nothing is read back, so the stream never waits.
// The own kernels run at full occupancy (at most 32 registers); the sort is tuned by CUB. Not run on a GPU yet.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cub/device/device_radix_sort.cuh>
#include <tuple>

#include "../dispatch.h"
#include "../math/order.h"
#include "common.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlockThreads = 256;

template <class T>
__global__ void make_keys(const T* utilities, int64_t rows, int64_t stride, order_key_t<T>* keys, int64_t* indices) {
  for (int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * kBlockThreads) {
    keys[i] = order_key(utilities[i * stride]);
    indices[i] = i;
  }
}

template <class T>
__global__ void write_best(const T* utilities, int64_t stride, const order_key_t<T>* keys, const int64_t* order,
                           int64_t b, int64_t* indices, T* values) {
  for (int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; i < b; i += int64_t{gridDim.x} * kBlockThreads) {
    const bool selectable = keys[i] != kNeverSelected<order_key_t<T>>;
    indices[i] = selectable ? order[i] : -1;
    values[i] = selectable ? utilities[order[i] * stride] : std::numeric_limits<T>::quiet_NaN();
  }
}

template <class T>
void launch(const Tensor& utilities, int64_t b, Tensor& indices, Tensor& values) {
  using Key = order_key_t<T>;
  const int64_t rows = utilities.size(0);
  const int64_t stride = utilities.stride(0);
  const auto* data = static_cast<const T*>(utilities.data_ptr());
  const cudaStream_t stream = current_stream(utilities.get_device_index());
  const auto bytes = [&](int64_t count) { return torch::stable::new_empty(utilities, {count}, ScalarType::Byte); };
  // Keys and rows, each twice: what a radix sort ping-pongs between.
  const Tensor keys = bytes(2 * rows * static_cast<int64_t>(sizeof(Key)));
  const Tensor order = bytes(2 * rows * static_cast<int64_t>(sizeof(int64_t)));
  auto* key = static_cast<Key*>(keys.data_ptr());
  auto* row = static_cast<int64_t*>(order.data_ptr());
  launch_kernel(make_keys<T>, {grid_for(divide_up(rows, kBlockThreads)), kBlockThreads}, stream, data, rows, stride,
                key, row);

  cub::DoubleBuffer<Key> key_buffer(key, key + rows);
  cub::DoubleBuffer<int64_t> row_buffer(row, row + rows);
  size_t room = 0;
  const auto sort = [&](void* temporary) {
    check_cuda(cub::DeviceRadixSort::SortPairsDescending(temporary, room, key_buffer, row_buffer, rows, 0,
                                                         static_cast<int>(8 * sizeof(Key)), stream));
  };
  sort(nullptr);
  const Tensor temporary = bytes(static_cast<int64_t>(room) + 1);
  sort(temporary.data_ptr());

  launch_kernel(write_best<T>, {grid_for(divide_up(b, kBlockThreads)), kBlockThreads}, stream, data, stride,
                key_buffer.Current(), row_buffer.Current(), b, static_cast<int64_t*>(indices.data_ptr()),
                static_cast<T*>(values.data_ptr()));
}

std::tuple<Tensor, Tensor> top_b(const Tensor& utilities, int64_t b) {
  constexpr const char* op = "top_b";
  check_rank(op, "utilities", utilities, 1);
  const int64_t rows = utilities.size(0);
  check(b >= 0 && b <= rows, op, "b must lie in [0, ", rows, "], got ", b);
  const torch::stable::accelerator::DeviceGuard guard(utilities.get_device_index());
  Tensor indices = torch::stable::new_empty(utilities, {b}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(utilities, {b});
  dispatch_float_double(op, "utilities", utilities.scalar_type(), [&](auto stored) {
    if (b > 0) launch<decltype(stored)>(utilities, b, indices, values);
  });
  return {indices, values};
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("top_b", TORCH_BOX(&prunefuse::cuda::top_b)); }

// A scatter that is prepared once and run again and again, for the pybind11 module: what a list of a thousand tensors
// costs on its way to an operator, and checking them, is several times what moving their values costs.
#pragma once

#include <cstdint>

struct prunefuse_scatter;

// C linkage and default visibility: the pybind11 module asks these of the operator library.
extern "C" {
__attribute__((visibility("default"))) prunefuse_scatter* prunefuse_scatter_new();
__attribute__((visibility("default"))) void prunefuse_scatter_delete(prunefuse_scatter* scatter);
// Adds a pair of tensors by their addresses: `sizes` of the small one, which is contiguous, `strides` of the dense one
// in elements, and for every axis the address of its kept indices, or 0 where it is whole. Nothing is checked, but for
// the rank: false if it is too high. The memory has to stay where it is.
__attribute__((visibility("default"))) bool prunefuse_scatter_add(prunefuse_scatter* scatter, int64_t dense,
                                                                  int64_t small, int64_t element_size, int64_t rank,
                                                                  const int64_t* sizes, const int64_t* strides,
                                                                  const int64_t* kept);
__attribute__((visibility("default"))) void prunefuse_scatter_run(const prunefuse_scatter* scatter);
}

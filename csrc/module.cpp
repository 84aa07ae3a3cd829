// `prunefuse._C`: what is no tensor operator. Import it after torch and after the operator library is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/scatter.h"

namespace py = pybind11;

namespace {

using prunefuse::cpu::kIsaNames;

void force_isa(const py::object& name) {
  if (name.is_none()) {
    prunefuse_isa_force(-1);
    return;
  }
  const auto wanted = name.cast<std::string>();
  for (int level = 0; level < 3; ++level) {
    if (wanted == kIsaNames[level] && prunefuse_isa_force(level)) return;
  }
  throw py::value_error("level must be one of isa_levels() or None, got '" + wanted + "'");
}

py::list isa_levels() {
  py::list names;
  for (int level = 0; level <= prunefuse_isa_best(); ++level) names.append(kIsaNames[level]);
  return names;
}

class Scatter {
 public:
  Scatter() : scatter_(prunefuse_scatter_new()) {}
  ~Scatter() { prunefuse_scatter_delete(scatter_); }
  Scatter(const Scatter&) = delete;
  Scatter& operator=(const Scatter&) = delete;

  void add(int64_t dense, int64_t small, int64_t element_size, const std::vector<int64_t>& sizes,
           const std::vector<int64_t>& strides, const std::vector<int64_t>& kept) {
    const auto rank = static_cast<int64_t>(sizes.size());
    if (strides.size() != sizes.size() || kept.size() != sizes.size() ||
        !prunefuse_scatter_add(scatter_, dense, small, element_size, rank, sizes.data(), strides.data(), kept.data())) {
      throw py::value_error("sizes, strides and kept must have one number for each of at most 8 axes");
    }
  }

  void run() const { prunefuse_scatter_run(scatter_); }

 private:
  prunefuse_scatter* scatter_;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, the instruction-set level of prunefuse's CPU kernels, and a scatter that is prepared once.";
  m.attr("abi_target") = PRUNEFUSE_ABI_TARGET;
  m.attr("built_with_torch") = PRUNEFUSE_BUILT_WITH_TORCH;
  m.attr("compiler") = PRUNEFUSE_COMPILER;
  m.attr("cuda_compiler") = PRUNEFUSE_CUDA_COMPILER;
  m.attr("cuda_architectures") = PRUNEFUSE_CUDA_ARCHITECTURES;
  m.def("isa_level", [] { return kIsaNames[prunefuse_isa_level()]; }, "The instruction-set level in use.");
  m.def("isa_levels", &isa_levels, "The levels that this build and this processor have, best last.");
  m.def("force_isa", &force_isa, py::arg("level"), "Use this level from now on; None: the default again.");
  py::class_<Scatter>(m, "Scatter", "A scatter between tensors by their addresses, to be run again and again.")
      .def(py::init<>())
      .def("add", &Scatter::add, "Adds a pair of tensors; see csrc/cpu/scatter.h.")
      .def("run", &Scatter::run, py::call_guard<py::gil_scoped_release>(), "Moves the values of all pairs.");
}

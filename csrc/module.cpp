// `prunefuse._C`: what is no tensor operator. Import it after torch and after the operator library is loaded.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/isa.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and the instruction-set level of prunefuse's CPU kernels.";
  m.attr("abi_target") = PRUNEFUSE_ABI_TARGET;
  m.attr("built_with_torch") = PRUNEFUSE_BUILT_WITH_TORCH;
  m.attr("compiler") = PRUNEFUSE_COMPILER;
  m.attr("cuda_compiler") = PRUNEFUSE_CUDA_COMPILER;
  m.attr("cuda_architectures") = PRUNEFUSE_CUDA_ARCHITECTURES;
  m.def("isa_level", [] { return kIsaNames[prunefuse_isa_level()]; }, "The instruction-set level in use.");
  m.def("isa_levels", &isa_levels, "The levels that this build and this processor have, best last.");
  m.def("force_isa", &force_isa, py::arg("level"), "Use this level from now on; None: the default again.");
}

// What the headers of torch 2.11.0 lack of later ones: the sources compile against every torch from 2.11.0 on.
#pragma once

#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

// Throws where a call of torch's C interface fails. With 2.11.0, without that call's own message.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

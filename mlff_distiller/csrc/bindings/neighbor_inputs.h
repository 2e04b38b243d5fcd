// Arguments of the neighbour list's operator, checked once for the CPU and the GPU.
#pragma once

#include <ATen/Functions.h>

#include <array>

namespace mlff_bindings {

struct NeighborInputs {
  at::Tensor points;  // (n, 3) double on the device of the positions
  at::Tensor rows;    // (3, 3) double on the host; a cell or pbc on a GPU makes the host wait
  std::array<bool, 3> periodic;

  NeighborInputs(const at::Tensor& positions, const at::Tensor& cell, const at::Tensor& pbc) {
    TORCH_CHECK_VALUE(
        positions.dim() == 2 && positions.size(1) == 3 && positions.is_floating_point(),
        "positions must be a float tensor of shape (n, 3), got ", positions.scalar_type(), " ",
        positions.sizes());
    TORCH_CHECK_VALUE(cell.dim() == 2 && cell.size(0) == 3 && cell.size(1) == 3,
                      "cell must have shape (3, 3), got ", cell.sizes());
    TORCH_CHECK_VALUE(pbc.dim() == 1 && pbc.size(0) == 3 && pbc.scalar_type() == at::kBool,
                      "pbc must be a bool tensor of shape (3,), got ", pbc.scalar_type(), " ",
                      pbc.sizes());
    points = positions.to(at::kDouble).contiguous();
    rows = cell.to(at::kCPU, at::kDouble).contiguous();
    const at::Tensor flags = pbc.to(at::kCPU).contiguous();
    const bool* flag = flags.const_data_ptr<bool>();
    periodic = {flag[0], flag[1], flag[2]};
  }
};

}  // namespace mlff_bindings

#include "bindings/gpu_python.h"

#include <memory>
#include <string>

#include "bindings/potential_python.h"
#include "cuda/cublas.h"
#include "cuda/potential.h"

using namespace mlff_bindings;

void bind_gpu(py::module_& m) {
  m.def("gpu_count", &mlff::gpu::device_count, "Number of usable GPUs.");
  m.def("gpu_name", &mlff::gpu::device_name, py::arg("device"));
  m.def(
      "gpu_products",
      [] {
        const mlff::gpu::Cublas* cublas = mlff::gpu::load_cublas();
        return cublas ? cublas->name() : std::string(mlff::gpu::kOwnProducts);
      },
      "What multiplies matrices on GPUs here.");

  typedef mlff::gpu::Potential P;
  py::class_<PyPotential<P>> potential = bind_potential<P>(m, "GpuPotential");
  potential.def(
      py::init([](const std::string& path, const std::string& dtype, double skin,
                  const std::string& math, int device, bool graph, bool cublas, bool fuse) {
        mlff::gpu::SystemOptions options;
        options.precision = precision_of(dtype);
        options.math = mlff::gpu::math_from_name(math);
        options.skin = skin;
        options.device = device;
        options.graph = graph;
        options.cublas = cublas;
        options.fuse = fuse;
        return std::make_unique<PyPotential<P>>(path, options);
      }),
      py::arg("path"), py::arg("dtype") = "float32", py::arg("skin") = mlff::kDefaultSkin,
      py::arg("math") = "float32", py::arg("device") = 0, py::arg("graph") = true,
      py::arg("cublas") = true, py::arg("fuse") = true);
  bind_property<P>(potential, "cublas", [](P& p) { return p.system().uses_cublas(); });
  bind_property<P>(potential, "products", [](P& p) { return p.system().products(); });
  bind_property<P>(potential, "num_graph_launches",
                   [](P& p) { return p.system().num_graph_launches(); });
}

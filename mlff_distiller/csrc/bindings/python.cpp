// mlff_distiller._native: the engine for Python. numpy in, numpy out, no torch; arguments are
// checked and documented by mlff_distiller/ops/engine.py, which wraps this module.

#include <memory>
#include <string>
#include <vector>

#include "bindings/errors.h"
#include "bindings/potential_python.h"
#include "bindings/testing.h"
#include "core/cpus.h"
#include "core/isa.h"
#include "core/lattice.h"
#include "core/units.h"
#if defined(MLFF_CUDA)
#include "bindings/gpu_python.h"
#endif

using namespace mlff_bindings;

namespace {

py::dict profile_dict(const mlff::Profile& profile) {
  py::dict out;
  out["geometry"] = profile.geometry;
  out["edges_forward"] = profile.edges_forward;
  out["dense_forward"] = profile.dense_forward;
  out["dense_backward"] = profile.dense_backward;
  out["edges_backward"] = profile.edges_backward;
  return out;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native PaiNN engine; use mlff_distiller.ops.engine";
  register_errors();
  py::module_ testing =
      m.def_submodule("testing", "Parts of the engine, for tests and benchmarks.");
  bind_testing(testing);
#if defined(MLFF_CUDA)
  bind_gpu(m);
  bind_gpu_testing(testing);
#endif

  py::dict constants;  // of which Python has its own, tests/test_limits.py
  constants["flat_cell"] = mlff::kFlatCell;
  constants["same_point"] = mlff::kSamePoint;
  constants["most_images"] = mlff::kMostImages;
  constants["most_threads"] = mlff::kMostThreads;
  constants["num_elements"] = mlff::kNumElements;
  constants["default_skin"] = mlff::kDefaultSkin;
  constants["uncertainty_margin"] = mlff::kUncertaintyMargin;
  constants["frame_uncertainty_margin"] = mlff::kFrameUncertaintyMargin;
  m.attr("constants") = constants;

  m.def("available_isas", [] {
    std::vector<std::string> out;
    for (mlff::Isa isa : {mlff::Isa::kPortable, mlff::Isa::kAvx2, mlff::Isa::kAvx512}) {
      if (mlff::isa_available(isa)) out.push_back(mlff::isa_name(isa));
    }
    return out;
  });
  m.def("cpu_quota", [] { return mlff::cpu_quota(); });
  typedef mlff::Potential P;
  py::class_<PyPotential<P>> potential = bind_potential<P>(m, "Potential");
  potential.def(py::init([](const std::string& path, const std::string& dtype, int threads,
                            bool tabulate, double skin, const std::string& isa) {
                  mlff::PotentialOptions options;
                  options.engine = engine_options(dtype, threads, tabulate, isa);
                  options.skin = skin;
                  return std::make_unique<PyPotential<P>>(path, options);
                }),
                py::arg("path"), py::arg("dtype") = "float32", py::arg("threads") = 0,
                py::arg("tabulate") = true, py::arg("skin") = mlff::kDefaultSkin,
                py::arg("isa") = "auto");
  potential.def_property(
      "threads", [](PyPotential<P>& self) { return self.get().engine().num_threads(); },
      [](PyPotential<P>& self, int threads) { self.get().engine().set_num_threads(threads); });
  bind_property<P>(potential, "isa", [](P& p) { return mlff::isa_name(p.engine().isa()); });
  bind_property<P>(potential, "neighbor_seconds", [](P& p) { return p.neighbor_seconds(); });
  bind_property<P>(potential, "profile", [](P& p) { return profile_dict(p.engine().profile()); });
  potential.def("set_profiling",
                [](PyPotential<P>& self, bool on) { self.get().engine().set_profiling(on); });
}

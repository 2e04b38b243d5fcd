#include <climits>
#include <cmath>
#include <string>

#include "core/error.h"
#include "cuda/system.h"
#include "cuda/system_impl-inl.h"
#include "cuda/system_prepare-inl.h"
#include "cuda/system_step-inl.h"

namespace mlff {
namespace gpu {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // no driver is no error
    return 0;
  }
  return count;
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for the device's name");
  return std::string(properties.name) + " (" + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ")";
}

namespace {

std::unique_ptr<System::Impl> make_system(const ModelFile& model, const SystemOptions& options) {
  const int devices = device_count();
  if (options.device < 0 || options.device >= devices) {
    throw InputError("device must be below the number of GPUs, " + std::to_string(devices) +
                     ", got " + std::to_string(options.device) + "; use device cpu");
  }
  if (!(options.skin >= 0.0) || !std::isfinite(options.skin)) {
    throw InputError("skin must be >= 0 Å, got " + std::to_string(options.skin));
  }
  if (options.precision == Precision::kFloat64 && options.math != Math::kFloat32) {
    throw InputError(
        "math half and tf32 round single precision, and this is double precision; use single "
        "precision (float32), or math float32");
  }
  const CurrentDevice current(options.device);
  if (options.precision == Precision::kFloat32) {
    return std::make_unique<TypedSystem<float>>(model, options);
  }
  return std::make_unique<TypedSystem<double>>(model, options);
}

}  // namespace

System::System(const ModelFile& model, const SystemOptions& options) : device_(options.device) {
  impl_ = make_system(model, options);
}
System::~System() {
  try {  // streams, handles and graphs are destroyed on the device that they are of
    const CurrentDevice current(device_);
    impl_.reset();
  } catch (const Error&) {  // the device is gone; so is what was on it
  }
}
const StepResult& System::compute(const StepInput& input) {
  impl_->start(input);
  return impl_->complete();
}
void System::start(const StepInput& input) { impl_->start(input); }
const StepResult& System::complete() { return impl_->complete(); }
void System::begin(const StepInput& input) { impl_->begin(input); }
const RowExchange* System::advance() { return impl_->advance(); }
const StepResult& System::finish() { return impl_->finish(); }
const double* System::uncertainties() { return impl_->uncertainties(); }
bool System::close_pair(int& centre, int& sender, double& distance) const {
  const State& state = impl_->state();
  centre = state.close_centre;
  sender = state.close_sender;
  distance = state.close_distance;
  return state.close_edge != INT_MAX;
}
const TableReport& System::table_report() const { return impl_->table_report(); }
bool System::uses_cublas() const { return impl_->uses_cublas; }
std::string System::products() const { return impl_->products; }
int64_t System::num_builds() const { return impl_->num_builds; }
int64_t System::num_edges() const { return impl_->num_edges; }
int64_t System::num_graph_launches() const { return impl_->num_graph_launches; }
size_t System::memory_bytes() const { return impl_->memory_bytes(); }

}  // namespace gpu
}  // namespace mlff

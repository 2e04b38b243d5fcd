// The kernels of the training message pass, numpy arrays in and out, for
// tests/test_cuda_messages.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <list>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/message.h"

namespace py = pybind11;
namespace gpu = mlff::gpu;

namespace {

// Copies of numpy arrays on the device; results start as the emulation fills memory, with poison.
class Arrays {
 public:
  explicit Arrays(const py::dict& arrays) : arrays_(arrays) {}

  template <typename T>
  const T* in(const char* name) {
    if (!arrays_.contains(name)) return nullptr;
    const auto array = arrays_[name].cast<py::array_t<T, py::array::c_style>>();
    return upload(array.data(), array.size());
  }
  template <typename T>
  T* out(const char* name, std::vector<py::ssize_t> shape) {
    py::array_t<T> array(shape);
    results_[name] = array;
    memory_.emplace_back();
    memory_.back().require(array.nbytes());
    pending_.push_back({memory_.back().data(), array.mutable_data(), array.nbytes()});
    return reinterpret_cast<T*>(memory_.back().data());
  }
  py::dict results() {
    for (const Pending& p : pending_) {
      if (p.bytes == 0) continue;
      gpu::check(cudaMemcpy(p.to, p.from, p.bytes, cudaMemcpyDeviceToHost), "reading results");
    }
    return results_;
  }

 private:
  struct Pending {
    const void* from;
    void* to;
    py::ssize_t bytes;
  };

  template <typename T>
  const T* upload(const T* data, py::ssize_t count) {
    memory_.emplace_back();
    memory_.back().assign(reinterpret_cast<const unsigned char*>(data), count * sizeof(T));
    return reinterpret_cast<const T*>(memory_.back().data());
  }

  py::dict arrays_, results_;
  std::list<gpu::DeviceMemory<unsigned char>> memory_;
  std::vector<Pending> pending_;
};

template <typename T>
py::dict run(const std::string& order, const py::dict& dict) {
  Arrays arrays(dict);
  const py::array x = dict["x"], v = dict["v"], w = dict["w"];
  const py::ssize_t n = x.shape(0), f = v.shape(2), e = w.shape(0), width = w.shape(1);
  gpu::MessageCall<T> p;
  p.atoms = n, p.channels = f, p.num_edges = e, p.vectors = width == 3 * f;
  p.senders = arrays.in<int64_t>("senders");
  p.receivers = arrays.in<int64_t>("receivers");
  p.by_receiver = {arrays.in<int64_t>("receiver_offsets"), arrays.in<int64_t>("receiver_edges")};
  p.by_sender = {arrays.in<int64_t>("sender_offsets"), arrays.in<int64_t>("sender_edges")};
  p.x = arrays.in<T>("x"), p.w = arrays.in<T>("w"), p.r = arrays.in<T>("r");
  p.g = arrays.in<T>("g"), p.G = arrays.in<T>("G");
  p.hx = arrays.in<T>("hx"), p.hw = arrays.in<T>("hw"), p.hr = arrays.in<T>("hr");
  if (p.vectors) p.v = arrays.in<T>("v"), p.hv = arrays.in<T>("hv");  // else null: not read
  if (order != "backward") {
    p.s_out = arrays.out<T>("s_out", {n, f});
    p.V_out = arrays.out<T>("V_out", {n, 3, f});
  }
  if (order != "forward") {
    p.x_out = arrays.out<T>("x_out", {n, width});
    p.v_out = arrays.out<T>("v_out", {n, 3, f});
    p.w_out = arrays.out<T>("w_out", {e, width});
    p.r_out = arrays.out<T>("r_out", {e, 3});
  }
  if (order == "forward") {
    gpu::message_forward<T>(p, nullptr);
  } else if (order == "backward") {
    gpu::message_backward<T>(p, nullptr);
  } else {
    gpu::message_double_backward<T>(p, nullptr);
  }
  return arrays.results();
}

}  // namespace

void bind_messages(py::module_& m) {
  m.def("message", [](const std::string& order, const py::dict& arrays) {
    return py::isinstance<py::array_t<float>>(arrays["x"]) ? run<float>(order, arrays)
                                                           : run<double>(order, arrays);
  });
}

#include "core/training.h"

#include "core/training_parameters-inl.h"
#include "core/training_pass-inl.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mlff {
namespace {

template <typename F>
void on_threads(int threads, F&& function) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  function(omp_get_thread_num(), omp_get_num_threads());
#else
  function(0, threads - threads + 1);
#endif
}

}  // namespace

template <typename T>
size_t training_bytes(const TrainingInput<T>& input, bool gradients) {
  return Space<T>(input, nullptr, gradients).bytes;
}

template <typename T>
void training_forward(const TrainingInput<T>& input, const TrainingParameters<const T>& parameters,
                      const Kernels<T>& kernels, bool gradients, void* work, T* energies,
                      T* pair_gradients) {
  Space<T> space(input, work, gradients);
  on_threads(space.threads, [&](int thread, int team) {
    Pass<T> pass(input, space, kernels, false, thread, team);
    pack(kernels, input.model, space, parameters);
    pass.geometry(nullptr);
    pass.filters();
    pass.set_seeds(nullptr);
    pass.forward(parameters.embedding);
    pass.write_energies(energies);
    if (!pair_gradients) return;
    pass.clear_gradients();
    pass.backward();
    pass.write_gradients(pair_gradients);
  });
}

template <typename T>
void training_backward(const TrainingInput<T>& input, const Kernels<T>& kernels, void* work,
                       const T* c, const T* u, const TrainingParameters<T>& out) {
  Space<T> space(input, work, true);
  const int64_t n = input.graph->num_atoms;
  const std::vector<GradientTask<T>> tasks = gradient_tasks(space, n, out);
  const auto count = static_cast<int64_t>(tasks.size());
  on_threads(space.threads, [&](int thread, int team) {
    Pass<T> pass(input, space, kernels, true, thread, team);
    pass.geometry(u);
    pass.set_seeds(c);
    pass.forward(nullptr);
    pass.backward();
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task <= count; ++task) {
      if (task == 0) {
        small_gradients(input, space, team, out);
      } else {
        run_gradient(kernels, tasks[static_cast<size_t>(task - 1)],
                     space.of_thread[static_cast<size_t>(thread)].rows);
      }
    }
  });
}

#define MLFF_INSTANCE(T)                                                                          \
  template size_t training_bytes<T>(const TrainingInput<T>&, bool);                               \
  template void training_forward<T>(const TrainingInput<T>&, const TrainingParameters<const T>&,  \
                                    const Kernels<T>&, bool, void*, T*, T*);                      \
  template void training_backward<T>(const TrainingInput<T>&, const Kernels<T>&, void*, const T*, \
                                     const T*, const TrainingParameters<T>&)
MLFF_INSTANCE(float);
MLFF_INSTANCE(double);
#undef MLFF_INSTANCE

}  // namespace mlff

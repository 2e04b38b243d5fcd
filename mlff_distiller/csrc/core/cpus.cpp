#include "core/cpus.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mlff {
namespace {

// The two numbers, microseconds in each period; "max" and -1 are no limit.
int cpus(const std::string& quota, const std::string& period) {
  const double used = std::strtod(quota.c_str(), nullptr);
  const double of = std::strtod(period.c_str(), nullptr);
  if (!(used > 0.0) || !(of > 0.0)) return 0;
  return static_cast<int>(std::min(1e6, std::ceil(used / of)));
}

int quota_of(const std::string& folder) {
  std::string quota, period;
  std::ifstream second(folder + "/cpu.max");
  if (second >> quota >> period) return cpus(quota, period);
  std::ifstream of_first(folder + "/cpu.cfs_quota_us"),
      period_of_first(folder + "/cpu.cfs_period_us");
  if (of_first >> quota && period_of_first >> period) return cpus(quota, period);
  return 0;
}

// Of a group and of all that it lies in: the least. A container sees its own group as the root.
int least_quota(const std::string& mounted, std::string group) {
  int least = 0;
  while (true) {
    const int quota = quota_of(mounted + group);
    if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    if (group.empty()) return least;
    group.erase(std::min(group.rfind('/'), group.size()));
  }
}

}  // namespace

int cpu_quota(const std::string& mounted, const std::string& groups) {
  std::ifstream file(groups);
  int least = 0;
  // number:controllers:/group; the second version has no controllers.
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    std::stringstream controllers(line.substr(first + 1, second - first - 1));
    bool of_cpus = controllers.str().empty();
    for (std::string name; std::getline(controllers, name, ',');) of_cpus |= name == "cpu";
    if (!of_cpus) continue;
    for (const char* place : {"", "/cpu", "/cpu,cpuacct", "/unified"}) {
      const int quota = least_quota(mounted + place, group);
      if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    }
  }
  return least;
}

int default_threads() {
#ifdef _OPENMP
  const int threads = std::max(1, omp_get_max_threads());
  if (std::getenv("OMP_NUM_THREADS")) return threads;
  static const int quota = cpu_quota();
  return quota > 0 ? std::min(threads, quota) : threads;
#else
  return 1;
#endif
}

}  // namespace mlff

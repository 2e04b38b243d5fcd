// How many CPUs this process may keep busy, which is not how many the machine has.
#pragma once

#include <string>

namespace mlff {

// CPU time that the control group of this process may use, in CPUs, rounded up; 0 without a limit.
// Containers and batch systems set it. Both versions of Linux' control groups, each group up to the
// root. The arguments are for tests.
int cpu_quota(const std::string& mounted = "/sys/fs/cgroup",
              const std::string& groups = "/proc/self/cgroup");

// Threads where nobody chose a number: OMP_NUM_THREADS, or else the CPUs that this process may run
// on (its affinity), of which the control group may allow fewer. At least 1; 1 without OpenMP.
int default_threads();

}  // namespace mlff

#include "selftest.h"

int main(int argc, char** argv) {
  if (argc != 2 || selftest::cases().count(argv[1]) == 0) {
    for (const auto& entry : selftest::cases()) std::printf("%s\n", entry.first.c_str());
    return 2;
  }
  try {
    selftest::cases()[argv[1]]();
    cuda_host::set_schedule(0);  // throws what a destructor could not
    EXPECT(cuda_host::live_allocations() == 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

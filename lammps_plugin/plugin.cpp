// Entry point of painnplugin.so: makes `pair_style painn` and `fix painn/correct` known to LAMMPS.
//
// LAMMPS checks neither version nor integer sizes of a plugin, and its C++ classes change between
// versions. So nothing but the C library interface is used until both were compared; on a mismatch
// the styles are registered all the same and stop with one line that names both.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "lmptype.h"
#include "text.h"

// Version that the headers were of, YYYYMMDD, and whether the mpi.h was a real one.
#ifndef MLFF_LAMMPS_DATE
#error "define MLFF_LAMMPS_DATE, e.g. 20250722"
#endif
#ifndef MLFF_LAMMPS_MPI
#define MLFF_LAMMPS_MPI 1
#endif

// LAMMPS' C library interface (library.h declares it too, but not all installations have it).
extern "C" {
int lammps_version(void* handle);
int lammps_extract_setting(void* handle, const char* keyword);
int lammps_config_has_mpi_support();
}

// In pair_painn.cpp and fix_painn_correct.cpp. Not called unless the versions match.
void* mlff_create_pair_painn(void* lmp);
void* mlff_create_fix_painn_correct(void* lmp, int narg, char** arg);

namespace {

// What LAMMPS' plugin loader expects, as documented in its manual ("Writing plugins").
struct Registration {
  const char* version;
  const char* style;
  const char* name;
  const char* info;
  const char* author;
  union {
    void* (*v1)(void*);
    void* (*v2)(void*, int, char**);
  } creator;
  void* handle;
};
using RegisterFunction = void (*)(Registration*, void*);

std::string date_name(int date) {
  const char* months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                          "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const int month = date / 100 % 100;
  if (month < 1 || month > 12) return std::to_string(date);
  return mlff::format("%d %s %d", date % 100, months[month - 1], date / 10000);
}

const char* const remedy =
    "rebuild it: cmake -S lammps_plugin -B build -DLAMMPS_SOURCE_DIR=<LAMMPS> "
    "&& cmake --build build (or pip install --force-reinstall mlff-distiller)";

std::string find_mismatch(void* lmp) {
  const int version = lammps_version(lmp);
  if (version != MLFF_LAMMPS_DATE)
    return mlff::format("painnplugin.so was built for LAMMPS %s, this is LAMMPS %s; %s",
                        date_name(MLFF_LAMMPS_DATE).c_str(), date_name(version).c_str(), remedy);
  const int tagint = lammps_extract_setting(lmp, "tagint");
  const int bigint = lammps_extract_setting(lmp, "bigint");
  const int ours_tagint = static_cast<int>(sizeof(LAMMPS_NS::tagint));
  const int ours_bigint = static_cast<int>(sizeof(LAMMPS_NS::bigint));
  if (tagint != ours_tagint || bigint != ours_bigint)
    return mlff::format(
        "painnplugin.so was built for %d-byte atom ids and %d-byte counts, this "
        "LAMMPS has %d and %d (LAMMPS_SIZES); %s",
        ours_tagint, ours_bigint, tagint, bigint, remedy);
  const bool mpi = lammps_config_has_mpi_support() != 0;
  if (mpi != (MLFF_LAMMPS_MPI != 0))
    return mlff::format("painnplugin.so was built %s MPI, this LAMMPS %s it; %s",
                        MLFF_LAMMPS_MPI ? "with" : "without", mpi ? "has" : "lacks", remedy);
  return "";
}

void* stop(void* lmp) {
  const std::string mismatch = find_mismatch(lmp);
  // lammps_error() is younger than the rest of the interface, so it is looked up.
  using ErrorFunction = void (*)(void*, int, const char*);
  const auto raise = reinterpret_cast<ErrorFunction>(dlsym(RTLD_DEFAULT, "lammps_error"));
  constexpr int kAllRanks = 2;
  if (raise) raise(lmp, kAllRanks, mismatch.c_str());
  std::fprintf(stderr, "ERROR: %s\n", mismatch.c_str());
  std::exit(1);
}

void* stop_fix(void* lmp, int, char**) { return stop(lmp); }

}  // namespace

std::string mlff_other_update() {
  return mlff::format("painnplugin.so was built for another update of LAMMPS %s than this one; %s",
                      date_name(MLFF_LAMMPS_DATE).c_str(), remedy);
}

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* lmp, void* handle,
                                                                         void* register_function) {
  static const std::string version = date_name(MLFF_LAMMPS_DATE);
  const bool matches = find_mismatch(lmp).empty();
  const auto add = reinterpret_cast<RegisterFunction>(register_function);
  Registration plugin;
  plugin.version = version.c_str();
  plugin.author = "mlff_distiller";
  plugin.handle = handle;
  plugin.style = "pair";
  plugin.name = "painn";
  plugin.info = "pair_style painn: distilled PaiNN students";
  plugin.creator.v1 = matches ? &mlff_create_pair_painn : &stop;
  add(&plugin, lmp);
  plugin.style = "fix";
  plugin.name = "painn/correct";
  plugin.info = "fix painn/correct: the teacher's surface by multiple time steps";
  plugin.creator.v2 = matches ? &mlff_create_fix_painn_correct : &stop_fix;
  add(&plugin, lmp);
}

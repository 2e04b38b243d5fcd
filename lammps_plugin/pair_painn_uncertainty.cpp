// Uncertainties of atoms: the keyword, the limit, and what fix pair takes.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "error.h"
#include "pair_painn.h"
#include "text.h"
#include "update.h"

using namespace LAMMPS_NS;
using mlff::format;

void PairPaiNN::set_uncertainty(const char* value) {
  const bool stop = choose("uncertainty", value, {"warn", "stop"}) == 1;
  uncertain_ = stop ? Extrapolation::kStop : Extrapolation::kWarn;
}

void PairPaiNN::set_uncertainty_limit(const char* value) {
  if (std::strcmp(value, "auto") == 0) {
    given_limit_ = kAuto;
    return;
  }
  char* end = nullptr;
  given_limit_ = std::strtod(value, &end);
  if (end == value || *end != '\0' || !(given_limit_ > 0.0) || !std::isfinite(given_limit_))
    error->all(FLERR, format("pair_style painn: the limit of uncertainty must be a force > 0 or "
                             "auto, got '%s'",
                             value));
}

// fix pair asks once when it is defined, before there is a step, and then after each step.
void* PairPaiNN::extract_peratom(const char* name, int& columns) {
  columns = 0;
  if (std::strcmp(name, "uncertainty") != 0 || !has_uncertainties_) return nullptr;
  return uncertainties_.data();
}

// Whether this step computes uncertainties: because fix pair asks, or to compare with the limit.
bool PairPaiNN::wants_uncertainties() const {
  if (uncertainty_flag_ || uncertain_ == Extrapolation::kStop) return true;
  return uncertain_ == Extrapolation::kWarn && !uncertainty_reported_;
}

// Force units of the run.
double PairPaiNN::uncertainty_limit() const {
  if (given_limit_ != kAuto) return given_limit_;
  return mlff::kUncertaintyMargin * model_.largest_uncertainty * units_.energy / units_.length;
}

// Of the root mean square over all atoms; none where a limit of an atom was given.
double PairPaiNN::frame_uncertainty_limit() const {
  if (given_limit_ != kAuto) return std::numeric_limits<double>::infinity();
  return mlff::kFrameUncertaintyMargin * model_.largest_frame_uncertainty * units_.energy /
         units_.length;
}

// That root mean square, of all ranks' atoms that the model has, force units; 0 where nothing is
// compared with it. Collective.
double PairPaiNN::frame_uncertainty() const {
  if (!has_uncertainties_ || uncertain_ == Extrapolation::kIgnore || given_limit_ != kAuto)
    return 0.0;
  double mine[2] = {0.0, 0.0}, all[2];
  for (int i = 0; i < n_local_; ++i) {
    mine[0] += uncertainties_[i] * uncertainties_[i];
    mine[1] += uncertainties_[i] > 0.0 ? 1.0 : 0.0;
  }
  MPI_Allreduce(mine, all, 2, MPI_DOUBLE, MPI_SUM, world);
  return all[1] > 0.0 ? std::sqrt(all[0] / all[1]) : 0.0;
}

const char* PairPaiNN::force_unit() const {
  if (std::strcmp(update->unit_style, "metal") == 0) return "eV/Angstrom";
  if (std::strcmp(update->unit_style, "real") == 0) return "kcal/mol/Angstrom";
  return "force units";
}

// The largest uncertainty of this rank's atoms if it exceeds the limit, else that of the
// frame if it does, else 0, and a line on it.
double PairPaiNN::find_uncertain(double frame, std::string& found) const {
  if (!has_uncertainties_ || uncertain_ == Extrapolation::kIgnore) return 0.0;
  const long long step = update->ntimestep;
  const auto largest = std::max_element(uncertainties_.begin(), uncertainties_.begin() + n_local_);
  if (n_local_ > 0 && *largest > uncertainty_limit()) {
    found = format(
        "the uncertainty of the force on atom %lld is %.3g %s at step %lld, above the limit of "
        "%.3g; the model extrapolates there",
        tag_of(static_cast<int>(largest - uncertainties_.begin())), *largest, force_unit(), step,
        uncertainty_limit());
    return *largest;
  }
  if (!(frame > frame_uncertainty_limit())) return 0.0;
  found = format(
      "the uncertainty of the forces is %.3g %s (root mean square of all atoms) at step %lld, "
      "above the limit of %.3g; the model extrapolates there",
      frame, force_unit(), step, frame_uncertainty_limit());
  return frame;
}

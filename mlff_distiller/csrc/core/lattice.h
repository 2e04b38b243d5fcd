// The periodic part of a cell: checks, reduction, and the way back to the vectors as given.
#pragma once

#include <array>
#include <cstdint>

namespace mlff {

using Vec3 = std::array<double, 3>;
using Shift = std::array<int32_t, 3>;

inline double dot(const Vec3& a, const Vec3& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

inline Vec3 cross(const Vec3& a, const Vec3& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

// Puts unit vectors normal to the known rows (and to each other) in place of the others.
void complete_basis(std::array<Vec3, 3>& rows, std::array<bool, 3> known);

// Gauss reduction of each pair of periodic vectors makes the cell compact, so that the images
// within a radius are few however skewed the given cell is.
struct Lattice {
  std::array<bool, 3> periodic{};
  std::array<Vec3, 3> given{};    // Å, rows; zero for open directions
  std::array<Vec3, 3> reduced{};  // Å, reduced[k] = Σ_l transform[k][l] given[l]
  std::array<Vec3, 3> dual{};     // 1/Å, reduced[k]·dual[l] = δ_kl; zero for open directions
  std::array<std::array<int64_t, 3>, 3> transform{};

  // cell: 9, rows; rows of open directions are not read. Throws InputError when the periodic rows
  // are not finite, singular, or (all three periodic) left-handed.
  Lattice(const double* cell, const std::array<bool, 3>& pbc);

  // A shift counted in reduced vectors, counted in given ones. Throws InputError when it leaves
  // the range of int32 with room for sums.
  Shift to_given(const std::array<int64_t, 3>& shift) const;

 private:
  void check() const;
  void reduce();
};

}  // namespace mlff

// The periodic part of a cell: checks, reduction, and the way back to the vectors as given. The
// limits are those of every engine; mlff_distiller/lattice.py has them for Python.
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

// A periodic cell is flat if its volume is no more than this share of the product of its lengths
// (unit normals stand for open directions).
constexpr double kFlatCell = 1e-6;
// Angstrom. Atoms as near as this lie on one point: the direction between them is noise.
constexpr double kSamePoint = 1e-4;
// Images of the cell within reach of a neighbour list.
constexpr double kMostImages = 1 << 24;

// Puts unit vectors normal to the known rows (and to each other) in place of the others.
void complete_basis(std::array<Vec3, 3>& rows, std::array<bool, 3> known);

// The given rows, with unit normals in open directions. cell: 9, rows; those of open directions are
// not read (null without periodic ones). Throws InputError when periodic rows are not finite, zero,
// flat, or (all three periodic) left-handed.
std::array<Vec3, 3> complete_cell(const double* cell, const std::array<bool, 3>& pbc);

// Gauss reduction of each pair of periodic vectors makes the cell compact, so that the images
// within a radius are few however skewed the given cell is.
struct Lattice {
  std::array<bool, 3> periodic{};
  std::array<Vec3, 3> given{};    // Å, rows; zero for open directions
  std::array<Vec3, 3> reduced{};  // Å, reduced[k] = Σ_l transform[k][l] given[l]
  std::array<Vec3, 3> dual{};     // 1/Å, reduced[k]·dual[l] = δ_kl; zero for open directions
  std::array<std::array<int64_t, 3>, 3> transform{};

  // As complete_cell.
  Lattice(const double* cell, const std::array<bool, 3>& pbc);

  // How many reduced cells to either side can hold an image within `reach` Angstrom of the cell.
  // Throws InputError where these are more than kMostImages.
  std::array<int64_t, 3> repeats(double reach) const;

  // A shift counted in reduced vectors, counted in given ones. Throws InputError when it leaves
  // the range of int32 with room for sums.
  Shift to_given(const std::array<int64_t, 3>& shift) const;

 private:
  void reduce();
};

}  // namespace mlff

#include "core/lattice.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>

#include "core/error.h"

namespace mlff {

void complete_basis(std::array<Vec3, 3>& rows, std::array<bool, 3> known) {
  for (int k = 0; k < 3; ++k) {
    if (known[k]) continue;
    const int a = (k + 1) % 3, b = (k + 2) % 3;
    Vec3 normal{};
    if (known[a] && known[b]) {
      normal = cross(rows[a], rows[b]);
    } else if (known[a] || known[b]) {
      const Vec3& v = known[a] ? rows[a] : rows[b];
      int least = 0;
      for (int x = 1; x < 3; ++x) {
        if (std::abs(v[x]) < std::abs(v[least])) least = x;
      }
      Vec3 axis{};
      axis[least] = 1.0;
      normal = cross(v, axis);
    } else {
      normal[k] = 1.0;
    }
    const double length = std::sqrt(dot(normal, normal));
    for (double& x : normal) x /= length;
    rows[k] = normal;
    known[k] = true;
  }
}

std::array<Vec3, 3> complete_cell(const double* cell, const std::array<bool, 3>& pbc) {
  if (!pbc[0] && !pbc[1] && !pbc[2]) return {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
  std::array<Vec3, 3> rows{};
  if (!cell) {
    throw InputError("periodic directions need a cell, got none; set the cell or switch pbc off");
  }
  double lengths = 1.0;
  for (int k = 0; k < 3; ++k) {
    if (!pbc[k]) continue;
    rows[k] = {cell[3 * k], cell[3 * k + 1], cell[3 * k + 2]};
    const double length = std::sqrt(dot(rows[k], rows[k]));
    if (!std::isfinite(length)) {
      throw InputError("the cell must be finite, got NaN or infinity in lattice vector " +
                       std::to_string(k) + "; set the cell or switch pbc off");
    }
    if (length == 0.0) {
      throw InputError("lattice vector " + std::to_string(k) +
                       " must not be zero in a periodic direction; set the cell or pbc");
    }
    lengths *= length;
  }
  complete_basis(rows, pbc);
  const double volume = dot(rows[0], cross(rows[1], rows[2]));
  if (!(std::abs(volume) > kFlatCell * lengths)) {  // a normal of parallel rows is NaN
    throw InputError(
        "a periodic cell needs a volume, got linearly dependent lattice vectors; set the cell or "
        "switch pbc off");
  }
  if (volume < 0.0) {
    std::ostringstream text;
    text << "the cell must be right-handed, got the volume " << volume
         << " Å^3; swap two lattice vectors and the coordinates with them";
    throw InputError(text.str());
  }
  return rows;
}

Lattice::Lattice(const double* cell, const std::array<bool, 3>& pbc) : periodic(pbc) {
  const std::array<Vec3, 3> rows = complete_cell(cell, pbc);
  for (int k = 0; k < 3; ++k) {
    transform[k][k] = 1;
    if (periodic[k]) given[k] = rows[k];
  }
  reduced = given;
  reduce();
  std::array<Vec3, 3> basis = reduced;
  complete_basis(basis, periodic);
  const double volume = dot(basis[0], cross(basis[1], basis[2]));
  for (int k = 0; k < 3; ++k) {
    if (!periodic[k]) continue;
    dual[k] = cross(basis[(k + 1) % 3], basis[(k + 2) % 3]);
    for (double& x : dual[k]) x /= volume;
  }
}

std::array<int64_t, 3> Lattice::repeats(double reach) const {
  std::array<int64_t, 3> out{};
  double count = 1.0;
  for (int k = 0; k < 3; ++k) {
    const double repeat = std::ceil(reach * std::sqrt(dot(dual[k], dual[k])));
    count *= 2.0 * repeat + 1.0;
    if (count > kMostImages) {
      throw InputError("cutoff " + std::to_string(reach) +
                       " Å reaches too many images of this cell for one neighbour list; "
                       "reduce the cutoff");
    }
    out[k] = static_cast<int64_t>(repeat);
  }
  return out;
}

Shift Lattice::to_given(const std::array<int64_t, 3>& shift) const {
  Shift result{};
  for (int l = 0; l < 3; ++l) {
    int64_t sum = 0;
    for (int k = 0; k < 3; ++k) sum += shift[k] * transform[k][l];
    if (std::abs(sum) > std::numeric_limits<int32_t>::max() / 4) {
      throw InputError("expected positions within 5e8 cells of the origin, got an atom " +
                       std::to_string(sum) + " lattice vectors away; wrap the positions");
    }
    result[l] = static_cast<int32_t>(sum);
  }
  return result;
}

void Lattice::reduce() {
  bool changed = true;
  while (changed) {
    changed = false;
    for (int k = 0; k < 3; ++k) {
      for (int l = 0; l < 3; ++l) {
        if (k == l || !periodic[k] || !periodic[l]) continue;
        const double ratio = dot(reduced[k], reduced[l]) / dot(reduced[l], reduced[l]);
        // Strictly above one half: every step shortens a vector, so the loop ends.
        if (std::abs(ratio) < 0.5 + 1e-6 || std::abs(ratio) > 1e9) continue;
        const auto m = static_cast<int64_t>(std::llround(ratio));
        for (int x = 0; x < 3; ++x) {
          transform[k][x] -= m * transform[l][x];
          reduced[k][x] -= static_cast<double>(m) * reduced[l][x];
        }
        changed = true;
      }
    }
  }
}

}  // namespace mlff

#include "core/lattice.h"

#include <cmath>
#include <cstdlib>
#include <limits>
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

Lattice::Lattice(const double* cell, const std::array<bool, 3>& pbc) : periodic(pbc) {
  for (int k = 0; k < 3; ++k) {
    transform[k][k] = 1;
    if (periodic[k]) given[k] = {cell[3 * k], cell[3 * k + 1], cell[3 * k + 2]};
  }
  check();
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

void Lattice::check() const {
  double lengths = 1.0;
  for (int k = 0; k < 3; ++k) {
    if (!periodic[k]) continue;
    const double length = std::sqrt(dot(given[k], given[k]));
    if (!std::isfinite(length) || length <= 0.0) {
      throw InputError("cell row " + std::to_string(k) + " must be a finite, non-zero vector " +
                       "where pbc is true, got length " + std::to_string(length) +
                       " Å; set the cell or switch pbc off");
    }
    lengths *= length;
  }
  std::array<Vec3, 3> basis = given;
  complete_basis(basis, periodic);
  const double volume = dot(basis[0], cross(basis[1], basis[2]));
  if (!(std::abs(volume) > 1e-10 * lengths)) {
    throw InputError(
        "cell must have linearly independent rows where pbc is true, got volume 0; "
        "set the cell or switch pbc off");
  }
  if (periodic[0] && periodic[1] && periodic[2] && volume < 0.0) {
    throw InputError("cell must be right-handed, got volume " + std::to_string(volume) +
                     " Å^3; swap two lattice vectors");
  }
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

// Cell-list neighbour list. Interface and guarantees: neighbors.h; reference twin:
// ops/reference.py.
//
// 1. Reduce the periodic lattice vectors (Gauss, pairwise), so that skewed cells cost no more than
//    compact ones, and wrap the atoms into the reduced cell.
// 2. Write down every image within the cutoff of the box around the wrapped atoms and sort the
//    images into bins of cutoff/4 × cutoff/2 × cutoff/2. No case distinction remains after that:
//    open, periodic and tiny cells are all "atoms among images".
// 3. For each centre, walk the rows of bins that the cutoff sphere touches. Image distances carry
//    rounding errors, so pairs within that error of the cutoff are decided by `exact_inside`,
//    which uses the positions as given.
// 4. Sort each centre's neighbours by (sender, shift) and write them where the counts say.
//
// Centres are visited in the order of bins, whatever their order in memory, and handled in blocks;
// what a block finds depends on nothing but the input, so neither does the result.

// The twin in Python rounds after every operation; so must this file: CMakeLists.txt forbids the
// compiler to contract a multiplication and an addition.
#include "core/neighbors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "core/cpus.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/lattice.h"
#include "core/memory.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mlff {

struct NeighborList::Workspace {
  // An image and where it is; one cache line holds two.
  struct Image {
    double x, y, z;
    int64_t key;  // atom << 32 | code
  };

  std::vector<Vec3> wrapped;       // n
  std::vector<Shift> wraps;        // n, lattice vectors added to wrap an atom
  std::vector<Shift> code_shifts;  // image shifts in lexicographic order
  std::vector<Vec3> code_vectors;  // and the translations that belong to them
  std::vector<int64_t> unsorted;   // images as atom << 32 | code
  std::vector<int32_t> image_bins;
  std::vector<int32_t> bin_starts;
  std::vector<Image> images;                  // in the order of bins
  std::vector<int32_t> centres;               // atoms in the order of bins
  std::vector<std::vector<int32_t>> found;    // per block of centres, indices of images
  std::vector<std::vector<int64_t>> scratch;  // per thread

  template <typename F>
  void each(F&& f) const {
    f(wrapped), f(wraps), f(code_shifts), f(code_vectors), f(unsorted), f(image_bins);
    f(bin_starts), f(images), f(centres), f(found), f(scratch);
    for (const auto& block : found) f(block);
    for (const auto& keys : scratch) f(keys);
  }
};

NeighborList::NeighborList() : work(std::make_unique<Workspace>()) {}
NeighborList::~NeighborList() = default;
NeighborList::NeighborList(NeighborList&&) noexcept = default;
NeighborList& NeighborList::operator=(NeighborList&&) noexcept = default;

size_t NeighborList::bytes() const {
  Bytes bytes;
  bytes(offsets), bytes(senders), bytes(shifts);
  work->each(bytes);
  return bytes.total;
}

namespace {

using Workspace = NeighborList::Workspace;
using Image = Workspace::Image;

constexpr int64_t kBlock = 64;           // centres per block, the unit of work of a thread
constexpr int64_t kRankSortLimit = 256;  // more neighbours than this go through std::sort
constexpr int64_t kMaxImages = std::numeric_limits<int32_t>::max();

// Uniform bins over a box; coordinates outside of the box fall into the outermost bins.
struct Grid {
  Vec3 lower{}, width{};
  std::array<int32_t, 3> bins{1, 1, 1};

  int32_t along(int axis, double value) const {
    const double bin = (value - lower[axis]) / width[axis];
    return static_cast<int32_t>(std::min(std::max(bin, 0.0), bins[axis] - 1.0));
  }
  int64_t size() const { return int64_t{bins[0]} * bins[1] * bins[2]; }
};

class Builder {
 public:
  Builder(int64_t n, const double* positions, const Lattice& lattice, double cutoff,
          Workspace& work)
      : n_(n), positions_(positions), lattice_(lattice), cutoff_(cutoff), work_(work) {
    wrap();
    list_images();
    sort_images();
  }

  // Puts the neighbours of centre i, as indices of images, behind the first n_found of `found`
  // and returns the new number.
  int64_t search(int64_t i, std::vector<int32_t>& found, int64_t n_found) const {
    const Vec3& centre = work_.wrapped[i];
    const int64_t first = n_found;
    const int32_t z_end = grid_.along(2, centre[2] + reach_);
    const int32_t y_begin = grid_.along(1, centre[1] - reach_);
    const int32_t y_end = grid_.along(1, centre[1] + reach_);
    for (int32_t bz = grid_.along(2, centre[2] - reach_); bz <= z_end; ++bz) {
      const double dz = distance_to_bin(2, bz, centre[2]);
      for (int32_t by = y_begin; by <= y_end; ++by) {
        const double dy = distance_to_bin(1, by, centre[1]);
        const double left = reach_ * reach_ - dy * dy - dz * dz;
        if (left <= 0.0) continue;
        const double half = std::sqrt(left);
        const int64_t row = (int64_t{bz} * grid_.bins[1] + by) * grid_.bins[0];
        const int32_t begin = work_.bin_starts[row + grid_.along(0, centre[0] - half)];
        const int32_t end = work_.bin_starts[row + grid_.along(0, centre[0] + half) + 1];
        const auto room = static_cast<size_t>(n_found + end - begin);
        if (found.size() < room) found.resize(2 * room);
        n_found = scan_row(i, begin, end, found.data(), n_found);
      }
    }
    // The centre is its own candidate exactly once.
    const int64_t self = i << 32 | zero_code_;
    for (int64_t k = first; k < n_found; ++k) {
      if (work_.images[found[k]].key == self) {
        found[k] = found[--n_found];
        break;
      }
    }
    return n_found;
  }

  // Orders the images that `search` found for centre i and writes them as edges.
  void write_edges(int64_t i, const int32_t* found, int64_t n_found, std::vector<int64_t>& scratch,
                   int32_t* senders, Shift* shifts) const {
    const auto room = static_cast<size_t>(2 * n_found);
    if (scratch.size() < room) scratch.resize(2 * room);
    int64_t* keys = scratch.data();
    int64_t* sorted = keys + n_found;
    for (int64_t k = 0; k < n_found; ++k) keys[k] = work_.images[found[k]].key;
    if (n_found <= kRankSortLimit) {
      kernels_.rank_sort(keys, n_found, sorted);
    } else {
      std::sort(keys, keys + n_found);
      sorted = keys;
    }
    for (int64_t k = 0; k < n_found; ++k) {
      senders[k] = static_cast<int32_t>(sorted[k] >> 32);
      shifts[k] = shift(i, sorted[k]);
    }
  }

 private:
  Shift shift(int64_t i, int64_t edge) const {
    const Shift& a = work_.code_shifts[edge & 0xffffffff];
    if (!any_wrapped_) return a;
    const Shift& b = work_.wraps[edge >> 32];
    const Shift& c = work_.wraps[i];
    return {a[0] + b[0] - c[0], a[1] + b[1] - c[1], a[2] + b[2] - c[2]};
  }

  void wrap() {
    work_.wrapped.resize(n_);
    work_.wraps.resize(n_);
    double largest = 0.0;
    for (int64_t i = 0; i < n_; ++i) {
      const Vec3 p{positions_[3 * i], positions_[3 * i + 1], positions_[3 * i + 2]};
      const double size = std::abs(p[0]) + std::abs(p[1]) + std::abs(p[2]);
      if (!std::isfinite(size)) {
        throw InputError("positions must be finite, got NaN or infinity for atom " +
                         std::to_string(i) + "; check the structure");
      }
      largest = std::max(largest, size);
      std::array<int64_t, 3> cells{};
      Vec3 q = p;
      bool moved = false;
      for (int k = 0; k < 3; ++k) {
        const double cell = -std::floor(dot(p, lattice_.dual[k]));
        if (cell == 0.0) continue;
        if (std::abs(cell) > 1e9) {
          throw InputError("expected positions within 5e8 cells of the origin, got atom " +
                           std::to_string(i) + " farther away; wrap the positions");
        }
        cells[k] = static_cast<int64_t>(cell);
        for (int x = 0; x < 3; ++x) q[x] += cell * lattice_.reduced[k][x];
        moved = true;
      }
      work_.wrapped[i] = q;
      work_.wraps[i] = moved ? lattice_.to_given(cells) : Shift{};
      any_wrapped_ = any_wrapped_ || moved;
    }
    for (const Vec3& row : lattice_.given) largest = std::max(largest, std::sqrt(dot(row, row)));
    error_ = 1e-9 * cutoff_ + 1e-12 * largest;
    reach_ = cutoff_ + error_;
  }

  // All shifts that can bring an atom of the reduced cell within reach of another.
  void list_codes() {
    const std::array<int64_t, 3> repeats = lattice_.repeats(reach_);
    struct Code {
      Shift given;
      Vec3 vector;
    };
    std::vector<Code> codes;
    for (int64_t a = -repeats[0]; a <= repeats[0]; ++a) {
      for (int64_t b = -repeats[1]; b <= repeats[1]; ++b) {
        for (int64_t c = -repeats[2]; c <= repeats[2]; ++c) {
          Vec3 v{};
          for (int x = 0; x < 3; ++x) {
            v[x] = static_cast<double>(a) * lattice_.reduced[0][x] +
                   static_cast<double>(b) * lattice_.reduced[1][x] +
                   static_cast<double>(c) * lattice_.reduced[2][x];
          }
          codes.push_back({lattice_.to_given({a, b, c}), v});
        }
      }
    }
    std::sort(codes.begin(), codes.end(),
              [](const Code& a, const Code& b) { return a.given < b.given; });
    work_.code_shifts.clear();
    work_.code_vectors.clear();
    for (const Code& code : codes) {
      if (code.given == Shift{}) zero_code_ = static_cast<int64_t>(work_.code_shifts.size());
      work_.code_shifts.push_back(code.given);
      work_.code_vectors.push_back(code.vector);
    }
  }

  void list_images() {
    list_codes();
    Vec3 lower = work_.wrapped[0], upper = work_.wrapped[0];
    for (const Vec3& p : work_.wrapped) {
      for (int k = 0; k < 3; ++k) {
        lower[k] = std::min(lower[k], p[k]);
        upper[k] = std::max(upper[k], p[k]);
      }
    }
    for (int k = 0; k < 3; ++k) {
      lower[k] -= reach_;
      upper[k] += reach_;
    }
    work_.unsorted.clear();
    for (size_t code = 0; code < work_.code_vectors.size(); ++code) {
      const Vec3& t = work_.code_vectors[code];
      for (int64_t i = 0; i < n_; ++i) {
        const Vec3& p = work_.wrapped[i];
        const double x = p[0] + t[0], y = p[1] + t[1], z = p[2] + t[2];
        if (x < lower[0] || x > upper[0] || y < lower[1] || y > upper[1] || z < lower[2] ||
            z > upper[2]) {
          continue;
        }
        work_.unsorted.push_back(i << 32 | static_cast<int64_t>(code));
      }
      if (static_cast<int64_t>(work_.unsorted.size()) > kMaxImages) {
        throw InputError("cutoff " + std::to_string(cutoff_) +
                         " Å reaches more than 2147483647 images of the atoms; reduce the cutoff");
      }
    }
    set_grid(lower, upper);
  }

  void set_grid(const Vec3& lower, const Vec3& upper) {
    // Not many more bins than images: a cluster in a wide vacuum keeps its memory.
    const int64_t limit =
        std::min(kMaxImages, 2 * static_cast<int64_t>(work_.unsorted.size()) + 64);
    grid_.lower = lower;
    for (int k = 0; k < 3; ++k) {
      const double extent = upper[k] - lower[k];
      grid_.bins[k] = static_cast<int32_t>(
          std::min(std::max(1.0, std::floor(extent / reach_ * (k == 0 ? 4.0 : 2.0))), 1048576.0));
    }
    while (grid_.size() > limit) {
      int32_t& longest = *std::max_element(grid_.bins.begin(), grid_.bins.end());
      longest /= 2;
    }
    for (int k = 0; k < 3; ++k) grid_.width[k] = (upper[k] - lower[k]) / grid_.bins[k];
  }

  void sort_images() {
    const size_t count = work_.unsorted.size();
    work_.image_bins.resize(count);
    work_.bin_starts.assign(grid_.size() + 1, 0);
    for (size_t k = 0; k < count; ++k) {
      const Vec3 p = image_position(work_.unsorted[k]);
      const int64_t bin =
          (int64_t{grid_.along(2, p[2])} * grid_.bins[1] + grid_.along(1, p[1])) * grid_.bins[0] +
          grid_.along(0, p[0]);
      work_.image_bins[k] = static_cast<int32_t>(bin);
      ++work_.bin_starts[bin];
    }
    int32_t sum = 0;
    for (int32_t& start : work_.bin_starts) {
      const int32_t size = start;
      start = sum;
      sum += size;
    }
    work_.images.resize(count);
    for (size_t k = 0; k < count; ++k) {
      const int32_t slot = work_.bin_starts[work_.image_bins[k]]++;
      const Vec3 p = image_position(work_.unsorted[k]);
      work_.images[slot] = {p[0], p[1], p[2], work_.unsorted[k]};
    }
    // Filling moved every start to the next bin's; move them back.
    std::copy_backward(work_.bin_starts.begin(), work_.bin_starts.end() - 1,
                       work_.bin_starts.end());
    work_.bin_starts[0] = 0;
    work_.centres.clear();
    for (const Image& image : work_.images) {
      if ((image.key & 0xffffffff) == zero_code_) {
        work_.centres.push_back(static_cast<int32_t>(image.key >> 32));
      }
    }
  }

  Vec3 image_position(int64_t image) const {
    const Vec3& p = work_.wrapped[image >> 32];
    const Vec3& t = work_.code_vectors[image & 0xffffffff];
    return {p[0] + t[0], p[1] + t[1], p[2] + t[2]};
  }

  double distance_to_bin(int axis, int32_t bin, double value) const {
    const double begin = grid_.lower[axis] + bin * grid_.width[axis];
    return std::max({0.0, begin - value, value - begin - grid_.width[axis]});
  }

  // Appends the images in [begin, end) that are within the cutoff of centre i, itself included.
  int64_t scan_row(int64_t i, int32_t begin, int32_t end, int32_t* found, int64_t n_found) const {
    const Vec3 centre = work_.wrapped[i];
    const double outer = reach_ * reach_;
    const double inner_radius = std::max(0.0, cutoff_ - error_);
    const double inner = inner_radius * inner_radius;
    const Image* images = work_.images.data();
    const int64_t first = n_found;
    int64_t undecided = 0;
    for (int32_t k = begin; k < end; ++k) {
      const Image& image = images[k];
      const double dx = image.x - centre[0], dy = image.y - centre[1], dz = image.z - centre[2];
      const double d2 = dx * dx + dy * dy + dz * dz;
      found[n_found] = k;
      n_found += d2 < outer;
      undecided += (d2 < outer) - (d2 < inner);
    }
    if (undecided == 0) return n_found;
    const int64_t last = n_found;
    n_found = first;
    for (int64_t k = first; k < last; ++k) {
      if (exact_inside(i, images[found[k]].key)) found[n_found++] = found[k];
    }
    return n_found;
  }

  bool exact_inside(int64_t i, int64_t edge) const {
    const Shift s = shift(i, edge);
    const double *sender = positions_ + 3 * (edge >> 32), *receiver = positions_ + 3 * i;
    Vec3 d{};
    for (int x = 0; x < 3; ++x) {
      const double translation =
          s[0] * lattice_.given[0][x] + s[1] * lattice_.given[1][x] + s[2] * lattice_.given[2][x];
      d[x] = (sender[x] - receiver[x]) + translation;
    }
    return d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < cutoff_ * cutoff_;
  }

  const Kernels<double>& kernels_ = best_kernels<double>();
  int64_t n_;
  const double* positions_;
  const Lattice& lattice_;
  double cutoff_;
  Workspace& work_;
  double error_ = 0.0, reach_ = 0.0;  // bound of rounding errors; cutoff + error
  bool any_wrapped_ = false;
  int64_t zero_code_ = 0;
  Grid grid_;
};

}  // namespace

void build_neighbor_list(int64_t n, const double* positions, const double* cell,
                         const std::array<bool, 3>& pbc, double cutoff, int num_threads,
                         NeighborList& out) {
  if (!std::isfinite(cutoff) || cutoff <= 0.0) {
    throw InputError("cutoff must be > 0 Å, got " + std::to_string(cutoff) + "; set cutoff");
  }
  if (n < 0 || n > std::numeric_limits<int32_t>::max()) {
    throw InputError("expected 0 to 2147483647 atoms, got " + std::to_string(n));
  }
  const Lattice lattice(cell, pbc);
  out.offsets.assign(n + 1, 0);
  if (n == 0) {
    out.senders.clear();
    out.shifts.clear();
    return;
  }
  Workspace& work = *out.work;
  const Builder builder(n, positions, lattice, cutoff, work);

  const int64_t n_blocks = (n + kBlock - 1) / kBlock;
  int threads = 1;
#ifdef _OPENMP
  threads = num_threads > 0 ? num_threads : default_threads();
  threads = static_cast<int>(std::min<int64_t>(threads, n_blocks));
#endif
  work.found.resize(std::max<size_t>(work.found.size(), n_blocks));
  work.scratch.resize(std::max<size_t>(work.scratch.size(), threads));
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t block = 0; block < n_blocks; ++block) {
    int64_t n_found = 0;
    for (int64_t k = block * kBlock; k < std::min(n, (block + 1) * kBlock); ++k) {
      const int32_t i = work.centres[k];
      const int64_t before = n_found;
      n_found = builder.search(i, work.found[block], n_found);
      out.offsets[i + 1] = n_found - before;
    }
  }
  for (int64_t i = 0; i < n; ++i) out.offsets[i + 1] += out.offsets[i];
  out.senders.resize(out.offsets[n]);
  out.shifts.resize(out.offsets[n]);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t block = 0; block < n_blocks; ++block) {
#ifdef _OPENMP
    auto& scratch = work.scratch[omp_get_thread_num()];
#else
    auto& scratch = work.scratch[0];
#endif
    const int32_t* found = work.found[block].data();
    for (int64_t k = block * kBlock; k < std::min(n, (block + 1) * kBlock); ++k) {
      const int32_t i = work.centres[k];
      const int64_t begin = out.offsets[i], n_found = out.offsets[i + 1] - begin;
      builder.write_edges(i, found, n_found, scratch, out.senders.data() + begin,
                          out.shifts.data() + begin);
      found += n_found;
    }
  }
}

}  // namespace mlff

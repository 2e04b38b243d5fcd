// Rows of other ranks' atoms: which ones are needed, fetching them, and returning what they
// collected.
#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "atom.h"
#include "comm.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair_painn.h"

using namespace LAMMPS_NS;

namespace {
constexpr int kIndexTag = 7301, kRowTag = 7302, kTotalTag = 7303;
}  // namespace

// Decides which row of the features each atom has, and the species of rows. Collective.
void PairPaiNN::find_rows() {
  n_local_ = atom->nlocal;
  const int n_all = atom->nlocal + atom->nghost;
  // Vectors are never empty, so that data() is valid on a rank without atoms.
  const size_t size = static_cast<size_t>(std::max(1, n_all));
  // ago counts the steps since lists were built, the same on all ranks.
  const bool new_list = !plan_valid_ || neighbor->ago == 0;
  const bool changed = find_species(new_list);
  // The plan passes over atoms of type NULL, and types may be set between two builds of lists.
  int replan = new_list || (has_null_ && changed);
  if (has_null_ && !new_list && comm->nprocs > 1) {
    const int mine = replan;
    MPI_Allreduce(&mine, &replan, 1, MPI_INT, MPI_MAX, world);
  }
  if (replan) plan_exchange();
  if (ghost_rows_) {
    rows_.resize(size);
    for (int i = 0; i < n_all; ++i) rows_[i] = i;
    n_rows_ = n_all;
  } else {
    rows_ = planned_rows_;
    n_rows_ = n_local_ + n_remote_;
  }
  row_species_.resize(static_cast<size_t>(std::max(1, n_rows_)));
  row_tags_.resize(row_species_.size());
  for (int i = 0; i < n_all; ++i)
    if (rows_[i] >= 0) {
      row_species_[rows_[i]] = species_[i];
      row_tags_[rows_[i]] = tag_of(i);
    }
}

// What users call an atom.
long long PairPaiNN::tag_of(int i) const { return atom->tag ? atom->tag[i] : i + 1; }

// Finds the owner of each ghost and agrees with the other ranks on who sends what. Collective.
void PairPaiNN::plan_exchange() {
  plan_valid_ = true;
  const int n_all = atom->nlocal + atom->nghost;
  const int me = comm->me;

  // Owners are asked of comm: atom->map may be absent, and does not tell the rank.
  owners_.resize(2 * static_cast<size_t>(std::max(1, n_all)));
  for (int i = 0; i < n_local_; ++i) {
    owners_[2 * i] = me;
    owners_[2 * i + 1] = i;
  }
  forward_rows(owners_.data(), 2);

  planned_rows_.assign(static_cast<size_t>(std::max(1, n_all)), -1);
  for (int i = 0; i < n_all; ++i)
    if (owners_[2 * i] == me) planned_rows_[i] = static_cast<int32_t>(owners_[2 * i + 1]);
  n_remote_ = 0;
  receives_.clear();
  sends_.clear();
  send_indices_.clear();
  if (comm->nprocs == 1) return;

  // Ghosts of other ranks' atoms in some neighbour list, sorted by owner. Without one, all of them,
  // as types may change while the plan holds.
  const bool listed = evaluator_->needs_list();
  std::vector<char> needed(static_cast<size_t>(std::max(1, n_all)), listed ? 0 : 1);
  for (int ii = 0; listed && ii < list->inum; ++ii) {
    const int i = list->ilist[ii];
    if (species_[i] < 0) continue;
    for (int k = 0; k < list->numneigh[i]; ++k) needed[list->firstneigh[i][k] & NEIGHMASK] = 1;
  }
  for (int j = 0; listed && j < n_all; ++j)
    if (species_[j] < 0) needed[j] = 0;
  std::vector<std::pair<std::pair<int, int>, int>> wanted;  // (rank, index there), ghost
  for (int j = n_local_; j < n_all; ++j)
    if (needed[j] && owners_[2 * j] != me)
      wanted.push_back(
          {{static_cast<int>(owners_[2 * j]), static_cast<int>(owners_[2 * j + 1])}, j});
  std::sort(wanted.begin(), wanted.end());

  std::vector<int> indices;  // at their owners, one for each remote row
  std::vector<int> want_counts(comm->nprocs, 0), give_counts(comm->nprocs, 0);
  for (size_t w = 0; w < wanted.size(); ++w) {
    const auto& owner = wanted[w].first;
    if (w == 0 || owner != wanted[w - 1].first) {
      if (want_counts[owner.first]++ == 0) receives_.push_back({owner.first, n_remote_, 0});
      ++receives_.back().count;
      ++n_remote_;
      indices.push_back(owner.second);
    }
    planned_rows_[wanted[w].second] = n_local_ + n_remote_ - 1;
  }

  MPI_Alltoall(want_counts.data(), 1, MPI_INT, give_counts.data(), 1, MPI_INT, world);
  int n_send = 0;
  for (int rank = 0; rank < comm->nprocs; ++rank)
    if (give_counts[rank] > 0) {
      sends_.push_back({rank, n_send, give_counts[rank]});
      n_send += give_counts[rank];
    }
  send_indices_.resize(static_cast<size_t>(n_send));
  std::vector<MPI_Request> pending;
  for (const Message& m : sends_) {
    pending.emplace_back();
    MPI_Irecv(&send_indices_[m.first], m.count, MPI_INT, m.rank, kIndexTag, world, &pending.back());
  }
  for (const Message& m : receives_) {
    pending.emplace_back();
    MPI_Isend(&indices[m.first], m.count, MPI_INT, m.rank, kIndexTag, world, &pending.back());
  }
  MPI_Waitall(static_cast<int>(pending.size()), pending.data(), MPI_STATUSES_IGNORE);
}

void PairPaiNN::exchange(const mlff::ExchangeRequest& request) {
  const double start = MPI_Wtime();
  count_exchange(request.row_bytes);
  if (ghost_rows_) {
    forward_rows(request.rows, static_cast<int>(request.row_bytes / sizeof(double)));
    if (request.backward) keep_ghost_adjoints(request);
  } else {
    char* rows = static_cast<char*>(request.rows);
    const size_t bytes = request.row_bytes;
    grow_send_buffer(bytes / sizeof(double));
    char* packed = reinterpret_cast<char*>(send_buffer_.data());
    for (size_t s = 0; s < send_indices_.size(); ++s)
      std::memcpy(packed + s * bytes, rows + send_indices_[s] * bytes, bytes);
    swap_rows(packed, rows + n_local_ * bytes, bytes);
  }
  exchange_seconds_ += MPI_Wtime() - start;
}

// For the banner.
void PairPaiNN::count_exchange(size_t row_bytes) {
  if (banner_printed_) return;
  ++exchanges_;
  exchanged_bytes_per_row_ += static_cast<int64_t>(row_bytes);
}

// Never shrinks: growing again would fill megabytes with zeros in each step.
void PairPaiNN::grow_send_buffer(size_t doubles_per_row) {
  const size_t size = send_indices_.size() * doubles_per_row;
  if (send_buffer_.size() < size) send_buffer_.resize(size);
}

// Sends rows of owned atoms, packed in the order of the plan, and gets the remote ones in theirs.
// They count as doubles, which they hold, or floats in pairs. Returns when all have arrived.
void PairPaiNN::swap_rows(const void* packed, void* remote, size_t row_bytes) {
  const int width = static_cast<int>(row_bytes / sizeof(double));
  std::vector<MPI_Request> pending;
  pending.reserve(receives_.size() + sends_.size());
  for (const Message& m : receives_) {
    pending.emplace_back();
    MPI_Irecv(static_cast<char*>(remote) + m.first * row_bytes, m.count * width, MPI_DOUBLE, m.rank,
              kRowTag, world, &pending.back());
  }
  for (const Message& m : sends_) {
    pending.emplace_back();
    MPI_Isend(static_cast<const char*>(packed) + m.first * row_bytes, m.count * width, MPI_DOUBLE,
              m.rank, kRowTag, world, &pending.back());
  }
  MPI_Waitall(static_cast<int>(pending.size()), pending.data(), MPI_STATUSES_IGNORE);
}

// Adds what rows that are not owned collected to their owners' totals. Collective.
void PairPaiNN::return_totals() {
  const double start = MPI_Wtime();
  const size_t width = totals_width_;
  if (ghost_rows_) {
    const int reverse = comm_reverse, reverse_off = comm_reverse_off;
    comm_reverse = comm_reverse_off = totals_width_;
    comm->reverse_comm(this);
    comm_reverse = reverse;
    comm_reverse_off = reverse_off;
  } else {
    std::vector<MPI_Request> pending;
    pending.reserve(receives_.size() + sends_.size());
    grow_send_buffer(width);
    for (const Message& m : sends_) {
      pending.emplace_back();
      MPI_Irecv(&send_buffer_[m.first * width], m.count * totals_width_, MPI_DOUBLE, m.rank,
                kTotalTag, world, &pending.back());
    }
    for (const Message& m : receives_) {
      pending.emplace_back();
      MPI_Isend(&totals_[(n_local_ + m.first) * width], m.count * totals_width_, MPI_DOUBLE, m.rank,
                kTotalTag, world, &pending.back());
    }
    MPI_Waitall(static_cast<int>(pending.size()), pending.data(), MPI_STATUSES_IGNORE);
    for (size_t s = 0; s < send_indices_.size(); ++s)
      for (size_t k = 0; k < width; ++k)
        totals_[send_indices_[s] * width + k] += send_buffer_[s * width + k];
  }
  exchange_seconds_ += MPI_Wtime() - start;
}

// Copies each owned row to the ghosts of its atom on all ranks: only bytes are moved. Collective.
void PairPaiNN::forward_rows(void* rows, int doubles_per_row) {
  exchange_rows_ = static_cast<char*>(rows);
  exchange_row_bytes_ = static_cast<size_t>(doubles_per_row) * sizeof(double);
  // LAMMPS reads the width of a row here; its buffers were sized for the widest.
  comm_forward = doubles_per_row;
  comm->forward_comm(this);
  comm_forward = forward_doubles_;
}

int PairPaiNN::pack_forward_comm(int n, int* list, double* buf, int /*pbc_flag*/, int* /*pbc*/) {
  char* to = reinterpret_cast<char*>(buf);
  for (int i = 0; i < n; ++i, to += exchange_row_bytes_)
    std::memcpy(to, exchange_rows_ + list[i] * exchange_row_bytes_, exchange_row_bytes_);
  return n * static_cast<int>(exchange_row_bytes_ / sizeof(double));
}

void PairPaiNN::unpack_forward_comm(int n, int first, double* buf) {
  std::memcpy(exchange_rows_ + first * exchange_row_bytes_, buf, n * exchange_row_bytes_);
}

int PairPaiNN::pack_reverse_comm(int n, int first, double* buf) {
  const size_t width = totals_width_;
  std::memcpy(buf, &totals_[first * width], n * width * sizeof(double));
  return n * totals_width_;
}

void PairPaiNN::unpack_reverse_comm(int n, int* list, double* buf) {
  const size_t width = totals_width_;
  for (int i = 0; i < n; ++i)
    for (size_t k = 0; k < width; ++k) totals_[list[i] * width + k] += *buf++;
}

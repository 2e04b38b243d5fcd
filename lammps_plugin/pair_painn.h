// pair_style painn: a distilled PaiNN student in LAMMPS, exact on any number of MPI ranks.
//
//   pair_style  painn [device auto|cpu|gpu] [precision single|double] [threads N]
//                     [tabulate on|off] [extrapolation warn|stop|ignore]
//                     [math float32|half|tf32] [gpu_aware auto|on|off]
//                     [uncertainty warn|stop VALUE|auto]
//   pair_coeff  * * student.pt Si O ...    # one element per atom type, NULL leaves a type out
//
// Message passing across ranks. The ghost shell is one cutoff wide, as for a pair potential.
// Between two interactions the features of atoms of other ranks are fetched from their owners, and
// in the reverse pass the adjoints in the same direction, because the engine gathers: an owned atom
// collects from its neighbours, which the full neighbour list holds, what a scattering reverse
// pass would have sent to it. Every rank makes every exchange, also without atoms.
//
// Rows of the features: owned atoms in LAMMPS' order, then one for each atom of another rank that
// some owned atom has in its neighbour list. Periodic images of one atom share its row, whoever
// owns it: most ghosts of a small domain are images, so this moves several times fewer bytes than
// a row for each ghost would. (The exact heat flux does need to tell images apart and takes a row
// for each ghost, in LAMMPS' order, filled by comm->forward_comm().) See pair_painn_exchange.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/engine.h"
#include "core/model_file.h"
#include "core/units.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairPaiNN : public Pair {
 public:
  explicit PairPaiNN(LAMMPS* lmp);
  ~PairPaiNN() override;

  void settings(int narg, char** arg) override;
  void coeff(int narg, char** arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;
  // At the end of a run: the share of the exchanges, which LAMMPS counts as pair time.
  void finish() override;
  // "cutoff" (double, distance units of the run), "min_distance" (closest pair in training, same),
  // "uncertainty_flag" (int; fix pair sets it to 1 before a step that shall compute them)
  void* extract(const char* name, int& dim) override;
  // "uncertainty" of the atoms of this rank, force units of the run, if the last step computed it
  void* extract_peratom(const char* name, int& columns) override;
  double memory_usage() override;
  // Of an atom type; 0 if it is left out. For fix painn/correct.
  int atomic_number(int type) const {
    const int species = type_species_[static_cast<size_t>(type)];
    return species < 0 ? 0 : model_.elements[static_cast<size_t>(species)];
  }

  int pack_forward_comm(int n, int* list, double* buf, int pbc_flag, int* pbc) override;
  void unpack_forward_comm(int n, int first, double* buf) override;
  int pack_reverse_comm(int n, int first, double* buf) override;
  void unpack_reverse_comm(int n, int* list, double* buf) override;

 private:
  enum class Extrapolation { kIgnore, kWarn, kStop };
  static constexpr double kAuto = -1.0;  // uncertainty limit: a multiple of the model's largest

  // What computes a step, by the keyword `device`: Cpu (pair_painn_compute.cpp) or Gpu
  // (pair_painn_gpu.cpp).
  class Evaluator {
   public:
    virtual ~Evaluator() = default;
    virtual std::string device() const = 0;         // for the banner
    virtual size_t max_exchange_bytes() const = 0;  // of one row that LAMMPS' comm carries
    virtual bool needs_list() const = 0;            // the full neighbour list of LAMMPS
    // Energies, forces and virials of this step, added to LAMMPS' arrays. Collective.
    virtual void compute() = 0;
  };
  class Cpu;
  class Gpu;
  std::unique_ptr<Evaluator> make_evaluator();
  // Throws InputError in a build without CUDA, without a GPU, and for settings that it has not.
  std::unique_ptr<Evaluator> make_gpu();

  // The closest pair of a step on this rank, rows of this rank, distance in Angstrom.
  struct ClosestPair {
    double distance = 1e300;
    int first = -1;
    int second = -1;
  };

  // settings, one for each keyword
  struct Keyword {
    const char* name;
    void (PairPaiNN::*set)(const char* value);
    bool two_values;  // the second one is handed to set_uncertainty_limit()
  };
  static const Keyword kKeywords[8];
  int choose(const char* keyword, const char* value, const std::vector<const char*>& choices);
  void set_device(const char* value);
  void set_precision(const char* value);
  void set_threads(const char* value);
  void set_tabulate(const char* value);
  void set_extrapolation(const char* value);
  void set_math(const char* value);
  void set_gpu_aware(const char* value);
  void set_uncertainty(const char* value);
  void set_uncertainty_limit(const char* value);

  void allocate();
  void check_neighbor_settings();
  bool excluded_from_all_types(int type) const;
  bool some_pairs_are_hidden() const;
  void find_absent();
  bool find_species(bool new_list);
  void plan_exchange();
  void find_rows();
  void compute_on_cpu();
  std::string find_not_finite(int n_all) const;
  std::string build_edges();
  std::string describe(const ClosestPair& pair) const;
  long long tag_of(int i) const;
  bool agree(const std::string& problem, const std::string& warning, double distance = 0.0);
  bool wants_uncertainties() const;
  double uncertainty_limit() const;
  const char* force_unit() const;
  double frame_uncertainty_limit() const;
  double frame_uncertainty() const;
  double find_uncertain(double frame, std::string& found) const;
  void check_results(double energy);
  void exchange(const mlff::ExchangeRequest& request);
  void count_exchange(size_t row_bytes);
  void swap_rows(const void* packed, void* remote, size_t row_bytes);
  void grow_send_buffer(size_t doubles_per_row);
  void return_totals();
  void forward_rows(void* rows, int doubles_per_row);
  void keep_ghost_adjoints(const mlff::ExchangeRequest& request);
  void find_barycentre_gradients(mlff::Graph graph);
  void add_results();
  void print_banner();

  // settings
  mlff::UnitStyle units_{1.0, 1.0};
  bool precision_given_ = false;
  bool tabulate_given_ = false;
  mlff::EngineOptions options_;
  int threads_ = 0;  // 0: the number that LAMMPS uses
  Extrapolation extrapolation_ = Extrapolation::kWarn;
  bool extrapolation_given_ = false;
  Extrapolation uncertain_ = Extrapolation::kIgnore;
  double given_limit_ = kAuto;  // force units of the run
  bool on_gpu_ = false;
  std::string math_ = "float32";
  enum class GpuAware { kAuto, kOn, kOff };
  GpuAware gpu_aware_ = GpuAware::kAuto;  // whether MPI takes addresses of device memory

  // model
  std::string model_path_;
  mlff::ModelFile model_;
  std::unique_ptr<mlff::Engine> engine_;  // with device gpu only asked for facts
  std::unique_ptr<Evaluator> evaluator_;
  std::vector<int> type_species_;  // [ntypes + 1], -1 for NULL
  bool has_null_ = false;
  double cutoff_ = 0.0;  // distance units of the run
  double min_distance_ = 0.0;

  // state of the run
  bool neighbor_settings_checked_ = false;
  bool closeness_reported_ = false;
  bool uncertainty_reported_ = false;
  int uncertainty_flag_ = 0;        // set and reset by fix pair
  bool has_uncertainties_ = false;  // whether the last step computed them
  bool banner_printed_ = false;
  int64_t exchanged_bytes_per_row_ = 0;
  int exchanges_ = 0;
  double compute_seconds_ = 0.0;
  double exchange_seconds_ = 0.0;

  // the graph of this step; kept, so that a step allocates nothing
  int n_local_ = 0;
  int n_rows_ = 0;
  std::vector<char> absent_;          // [n_all], see find_absent()
  std::vector<int32_t> species_;      // [n_all], of LAMMPS' atoms, -1: not there for the model
  std::vector<int32_t> rows_;         // [n_all], row of each atom, -1 if nobody's neighbour
  std::vector<int32_t> row_species_;  // [n_rows]
  std::vector<int64_t> row_tags_;     // [n_rows], for messages
  std::vector<int> list_index_;       // [n_local], position in the neighbour list or -1
  std::vector<int64_t> offsets_;
  std::vector<int32_t> senders_;
  std::vector<double> edge_vectors_;
  std::vector<double> atomic_energies_;
  std::vector<double> pair_gradients_;
  std::vector<double> uncertainties_;  // [n_local], force units of the run
  ClosestPair closest_;
  bool ghost_rows_ = false;  // whether each ghost has a row of its own

  // Who needs which rows; holds as long as the neighbour list does. Remote rows are sorted by
  // owner, so that messages arrive where they belong.
  struct Message {
    int rank = 0;
    int first = 0;  // among the remote rows, or place in send_indices_
    int count = 0;
  };
  bool plan_valid_ = false;
  int n_remote_ = 0;
  std::vector<double> owners_;         // [n_all][2], rank and index there; as comm sends doubles
  std::vector<int32_t> planned_rows_;  // [n_all]
  std::vector<Message> receives_, sends_;
  std::vector<int> send_indices_;  // owned atoms
  std::vector<double> send_buffer_;

  // exact heat flux, see pair_painn_heat.cpp; empty unless centroid/stress/atom asks for it
  std::vector<double> relative_;       // [n_all][3] positions from a point of this rank, Angstrom
  std::vector<double> ghost_offsets_;  // [n_ghost][3] from the owner's to this rank's frame
  std::vector<double> weights_;        // [n_local]
  std::vector<double> barycentre_gradients_[3];    // [n_edges][3] for x, y, z
  std::vector<std::vector<char>> ghost_adjoints_;  // one for each reverse exchange
  size_t kept_adjoints_ = 0;

  // rows under exchange
  char* exchange_rows_ = nullptr;
  size_t exchange_row_bytes_ = 0;
  int forward_doubles_ = 1;     // most doubles of one row in a forward communication
  std::vector<double> totals_;  // [n_rows][width]: force, then 6 and 9 virial components if wanted
  int totals_width_ = 3;
};

}  // namespace LAMMPS_NS

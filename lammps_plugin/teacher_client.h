// The wire between fix painn/correct and the Python process that owns the teacher: a Unix-domain
// socket, one question and one answer an outer step. Knows nothing of LAMMPS.
//
// Twin of mlff_distiller/multistep/server.py: the layouts, the magic and the version are the same
// there. Numbers are in the byte order of the machine, which both ends share.
//
//   question  Question, int32 atomic_numbers[count], double positions[count][3]
//   answer    Answer, char text[text_bytes], double forces[count][3] (if status is kOk)
//
// Units: eV and Angstrom. Lattice vectors are rows; those of open directions do not count.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mlff {

constexpr char kTeacherMagic[8] = {'M', 'L', 'F', 'F', 'C', 'O', 'R', 'R'};
constexpr uint32_t kTeacherVersion = 1;

struct Question {
  char magic[8];
  uint32_t version;
  uint32_t periodic;  // bit 0 for x, 1 for y, 2 for z
  int64_t step;
  int64_t count;
  double cell[3][3];
};
static_assert(sizeof(Question) == 104, "no padding: Python reads it as <8sIIqq9d");

struct Answer {
  enum Status : uint32_t { kOk = 0, kFailed = 1 };
  char magic[8];
  uint32_t version;
  uint32_t status;
  int64_t count;
  int64_t text_bytes;  // why it failed, or what to tell the user
  uint32_t has_virial;
  uint32_t unused;
  double energy;          // teacher minus student
  double student_energy;  // to compare with that of the pair style
  double virial[6];       // teacher minus student, xx yy zz xy xz yz
};
static_assert(sizeof(Answer) == 104, "no padding: Python writes it as <8sIIqqIIdd6d");

// One connection. Its functions throw std::runtime_error with one line.
class TeacherClient {
 public:
  // Connects. `timeout` in seconds, for each answer; 0 waits for ever.
  TeacherClient(const std::string& path, double timeout);
  ~TeacherClient();
  TeacherClient(const TeacherClient&) = delete;
  TeacherClient& operator=(const TeacherClient&) = delete;

  // Sends the question and waits for the answer. `question` needs step, periodic and cell.
  // `forces` becomes [count][3], in the order of the question; `text` what the server has to say.
  Answer ask(Question question, const std::vector<int32_t>& atomic_numbers,
             const std::vector<double>& positions, std::vector<double>& forces, std::string& text);

 private:
  void send(const void* data, size_t bytes);
  void receive(void* data, size_t bytes);
  void wait_until_ready(short events);
  [[noreturn]] void lost() const;

  std::string path_;
  double timeout_;
  int socket_ = -1;
};

}  // namespace mlff

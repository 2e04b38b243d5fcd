// Errors that a user can act on.
#ifndef MLFF_CORE_ERROR_H_
#define MLFF_CORE_ERROR_H_

#include <stdexcept>
#include <string>

namespace mlff {

// Bad input: one line that says what was expected, what was found and how to mend it. Becomes
// mlff_distiller.errors.InputError in Python and error->all / error->one in LAMMPS.
class InputError : public std::runtime_error {
 public:
  explicit InputError(const std::string& message) : std::runtime_error(message) {}
};

}  // namespace mlff

#endif  // MLFF_CORE_ERROR_H_

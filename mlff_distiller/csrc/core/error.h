// Errors that a user can act on.
#pragma once

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

// Errors that a user can act on.
#pragma once

#include <stdexcept>

namespace mlff {

// One line that says what was expected, what was found and how to mend it. Python raises the class
// of the same name in mlff_distiller.errors, LAMMPS stops by error->all or error->one.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the user gave cannot be used.
class InputError : public Error {
 public:
  using Error::Error;
};

// The input is good, but the device failed: out of memory, lost, no driver.
class DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace mlff

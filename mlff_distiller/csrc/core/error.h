// The one exception whose message is meant for users.
#pragma once

#include <stdexcept>
#include <string>

namespace mlff {

// Something the user gave cannot be used. The message is one line: expected, got, remedy.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace mlff

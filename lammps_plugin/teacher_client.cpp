#include "teacher_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "text.h"

namespace mlff {
namespace {

// Longer texts are no message of our server.
constexpr int64_t kMostText = 1 << 16;
// A server that is gone must be an error of this call, not a signal that ends the program.
#if defined(MSG_NOSIGNAL)
constexpr int kSendFlags = MSG_NOSIGNAL;
#else
constexpr int kSendFlags = 0;
#endif

[[noreturn]] void fail(const std::string& text) { throw std::runtime_error(text); }

}  // namespace

TeacherClient::TeacherClient(const std::string& path, double timeout)
    : path_(path), timeout_(timeout) {
  sockaddr_un address;
  std::memset(&address, 0, sizeof(address));
  address.sun_family = AF_UNIX;
  if (path.size() + 1 > sizeof(address.sun_path))
    fail(format("the path of a socket has at most %d bytes, got %d; use a shorter one",
                static_cast<int>(sizeof(address.sun_path)) - 1, static_cast<int>(path.size())));
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  socket_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
  if (socket_ < 0) fail(format("no socket could be made: %s", std::strerror(errno)));
  ::fcntl(socket_, F_SETFD, FD_CLOEXEC);
#if defined(SO_NOSIGPIPE)
  const int on = 1;
  ::setsockopt(socket_, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
  if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    const std::string reason = std::strerror(errno);
    ::close(socket_);
    fail(
        format("no server answers at %s (%s); start one on this machine: mlff-distiller "
               "correct-server MODEL.pt --teacher NAME",
               path.c_str(), reason.c_str()));
  }
}

TeacherClient::~TeacherClient() {
  if (socket_ >= 0) ::close(socket_);
}

void TeacherClient::lost() const {
  fail(format("the server at %s has gone; its own output says why", path_.c_str()));
}

void TeacherClient::wait_until_ready(short events) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(timeout_);
  for (;;) {
    int wait = -1;
    if (timeout_ > 0) {
      const double left = std::chrono::duration<double, std::milli>(end - Clock::now()).count();
      wait = static_cast<int>(std::min(std::max(left, 0.0) + 1.0, 1e9));
    }
    pollfd entry = {socket_, events, 0};
    const int ready = ::poll(&entry, 1, wait);
    if (ready > 0) return;  // also for errors and hang-ups, which the call behind this one meets
    if (ready < 0 && errno != EINTR) lost();
    if (timeout_ > 0 && Clock::now() >= end)
      fail(
          format("the server at %s did not answer within %g s; look whether its teacher hangs, or "
                 "raise the timeout",
                 path_.c_str(), timeout_));
  }
}

void TeacherClient::send(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    wait_until_ready(POLLOUT);
    const ssize_t sent = ::send(socket_, at, bytes, kSendFlags | MSG_DONTWAIT);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) continue;
    if (sent <= 0) lost();
    at += sent;
    bytes -= static_cast<size_t>(sent);
  }
}

void TeacherClient::receive(void* data, size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    wait_until_ready(POLLIN);
    const ssize_t got = ::recv(socket_, at, bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) continue;
    if (got <= 0) lost();
    at += got;
    bytes -= static_cast<size_t>(got);
  }
}

Answer TeacherClient::ask(Question question, const std::vector<int32_t>& atomic_numbers,
                          const std::vector<double>& positions, std::vector<double>& forces,
                          std::string& text) {
  std::memcpy(question.magic, kTeacherMagic, sizeof(kTeacherMagic));
  question.version = kTeacherVersion;
  question.count = static_cast<int64_t>(atomic_numbers.size());
  send(&question, sizeof(question));
  send(atomic_numbers.data(), atomic_numbers.size() * sizeof(int32_t));
  send(positions.data(), positions.size() * sizeof(double));

  Answer answer;
  receive(&answer, sizeof(answer));
  if (std::memcmp(answer.magic, kTeacherMagic, sizeof(kTeacherMagic)) != 0)
    fail(format("%s is the socket of another program", path_.c_str()));
  if (answer.version != kTeacherVersion)
    fail(
        format("the server at %s speaks version %u of the protocol, this plugin version %u; use "
               "both from one mlff-distiller",
               path_.c_str(), answer.version, kTeacherVersion));
  if (answer.text_bytes < 0 || answer.text_bytes > kMostText ||
      (answer.status == Answer::kOk && answer.count != question.count))
    fail(format("the server at %s sent a damaged answer", path_.c_str()));
  text.assign(static_cast<size_t>(answer.text_bytes), ' ');
  if (!text.empty()) receive(&text[0], text.size());
  if (answer.status != Answer::kOk) fail(text.empty() ? "the server failed" : text);
  forces.resize(positions.size());
  receive(forces.data(), forces.size() * sizeof(double));
  return answer;
}

}  // namespace mlff

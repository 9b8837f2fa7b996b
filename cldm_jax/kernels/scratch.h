// Working memory of the kernels.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace cldm {

// Freed buffers are kept for the next call, up to kKept bytes in all: fresh megabytes from the kernel cost
// more (page faults) than transforming the weights of a layer.
class Buffers {
 public:
  struct Buffer {
    float* data;
    size_t bytes;
  };

  static Buffers& Shared() {
    static Buffers* const shared = new Buffers;  // never destroyed: threads may outlive main
    return *shared;
  }

  Buffer Take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto best = free_.end();
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->bytes >= bytes && (best == free_.end() || it->bytes < best->bytes)) best = it;
      if (best != free_.end()) {
        const Buffer found = *best;
        kept_ -= found.bytes;
        free_.erase(best);
        return found;
      }
    }
    bytes = (bytes + kAlign - 1) / kAlign * kAlign;
    auto* data = static_cast<float*>(std::aligned_alloc(kAlign, bytes));
    if (!data) throw std::bad_alloc();
    return {data, bytes};
  }

  void Give(Buffer buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!free_.empty() && kept_ + buffer.bytes > kKept) {  // the oldest goes first
      kept_ -= free_.front().bytes;
      std::free(free_.front().data);
      free_.erase(free_.begin());
    }
    if (buffer.bytes > kKept) return std::free(buffer.data);
    free_.push_back(buffer);
    kept_ += buffer.bytes;
  }

 private:
  static constexpr size_t kAlign = 64, kKept = 64 << 20;
  std::mutex mutex_;
  std::vector<Buffer> free_;
  size_t kept_ = 0;
};

// Uninitialised cache-aligned floats, for the length of a scope.
class Scratch {
 public:
  explicit Scratch(int64_t size) : buffer_(Buffers::Shared().Take(size * sizeof(float))) {}
  ~Scratch() { Buffers::Shared().Give(buffer_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() { return buffer_.data; }

 private:
  Buffers::Buffer buffer_;
};

}  // namespace cldm

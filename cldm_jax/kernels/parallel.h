// A parallel loop on XLA's own thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace cldm {

inline int64_t NumThreads(xla::ffi::ThreadPool& pool) {
  const int64_t n = pool.num_threads();
  return n > 0 ? n : 1;
}

// Runs body(0) ... body(count - 1), in any order, and returns when all are done. The caller works too
// and waits only for tasks that somebody has begun: a pool that is busy elsewhere cannot block it.
template <typename Body>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t count, Body body) {
  const int64_t helpers = std::min(NumThreads(pool), count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  auto work = [state, count, body] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      body(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < helpers; ++i) {
    auto task = work;
    pool.Schedule(std::move(task));
  }
  work();
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

}  // namespace cldm

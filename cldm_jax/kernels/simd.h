// One vector type for AVX-512, AVX2 and the 128-bit rest, by the compiler's vector extensions.
#pragma once

#include <cstdint>
#include <cstring>

namespace cldm {

#if defined(__AVX512F__)
constexpr int kLanes = 16;   // floats per vector
constexpr int kMaxRows = 14; // x 2 vectors of accumulators: 28 of the 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kMaxRows = 6;  // 12 of 16
#else
constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kMaxRows = 12; // 24 of 32
#else
constexpr int kMaxRows = 6;
#endif
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Vec LoadFull(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void StoreFull(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// The first `lanes` floats; the rest of the vector is zero.
inline Vec Load(const float* p, int lanes) {
  if (__builtin_expect(lanes == kLanes, 1)) return LoadFull(p);
  Vec v = {};
  std::memcpy(&v, p, lanes * sizeof(float));
  return v;
}

inline void Store(float* p, Vec v, int lanes) {
  if (__builtin_expect(lanes == kLanes, 1)) return StoreFull(p, v);
  std::memcpy(p, &v, lanes * sizeof(float));
}

}  // namespace cldm

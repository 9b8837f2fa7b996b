// 3x3, stride 1, zero-padded convolution by Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray,
// CVPR 2016), float32 NHWC, forward and both gradients, as XLA FFI handlers.
//
// Every 4x4 tile of the output comes from a 6x6 patch d of the input:  Y = A^T [(G g G^T) . (B^T d B)] A,
// summed over input channels: 36 matrix products with 4 times fewer multiplications than the direct sum.
// Transforms and products of a block of tiles stay in the L2 cache. Work is divided by output elements,
// each computed by one task in one order, so results do not depend on the number of threads.
//
// Layout of transformed weights: [36, ceil(K / P), C, P], P = kPanel output channels, zero-filled.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <unistd.h>

#include "parallel.h"
#include "scratch.h"
#include "simd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cldm {
namespace {

constexpr int kFreq = 36;             // 6 x 6 products per tile
constexpr int kPanel = 2 * kLanes;    // output channels per panel of transformed weights

// Bytes of transformed input per task: 0.6 of the L2 cache, 300 KB where its size is not told.
inline int64_t BlockBytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t size = 0;
#endif
  return size > 0 ? std::clamp<int64_t>(size * 3 / 5, 128 << 10, 1 << 20) : 300 << 10;
}

// The three one-dimensional transforms. `in` and `out` are arrays of vectors.
inline void InputTransform(const Vec* d, Vec* o) {  // B^T d
  const Vec a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1];
  const Vec c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
  o[0] = 4.f * d[0] - 5.f * d[2] + d[4];
  o[1] = a + b;
  o[2] = a - b;
  o[3] = c + e;
  o[4] = c - e;
  o[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

inline void OutputTransform(const Vec* m, Vec* o) {  // A^T m
  const Vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
  o[0] = m[0] + p + r;
  o[1] = q + 2.f * s;
  o[2] = p + 4.f * r;
  o[3] = q + 8.f * s + m[5];
}

inline void GradientTransform(const Vec* g, Vec* o) {  // A g
  const Vec p = g[0] + g[2], q = g[1] + g[3], r = g[0] + 4.f * g[2], s = 2.f * g[1] + 8.f * g[3];
  o[0] = g[0];
  o[1] = p + q;
  o[2] = p - q;
  o[3] = r + s;
  o[4] = r - s;
  o[5] = g[3];
}

inline void WeightTransform(const Vec* g, Vec* o) {  // G g
  const Vec p = (-1.f / 6) * (g[0] + g[2]), q = (-1.f / 6) * g[1];
  const Vec r = (1.f / 24) * g[0] + (1.f / 6) * g[2], s = (1.f / 12) * g[1];
  o[0] = 0.25f * g[0];
  o[1] = p + q;
  o[2] = p - q;
  o[3] = r + s;
  o[4] = r - s;
  o[5] = g[2];
}

inline void WeightGradientTransform(const Vec* u, Vec* o) {  // G^T u
  const Vec p = u[1] + u[2], q = u[2] - u[1], r = u[3] + u[4], s = u[3] - u[4];
  o[0] = 0.25f * u[0] - (1.f / 6) * p + (1.f / 24) * r;
  o[1] = (1.f / 6) * q + (1.f / 12) * s;
  o[2] = (1.f / 6) * (r - p) + u[5];
}

struct Shape {
  int64_t n, h, w, c;
  int64_t th() const { return (h + 3) / 4; }
  int64_t tw() const { return (w + 3) / 4; }
  int64_t tiles() const { return n * th() * tw(); }
};

// Pointers to the rows x cols pixels whose first is (4 ty + offset, 4 tx + offset); `zero` outside.
template <int kSize>
inline void PixelPointers(const float* x, const Shape& s, int64_t tile, int offset, const float* zero,
                          const float* ptr[kSize * kSize]) {
  const int64_t tx = tile % s.tw(), ty = tile / s.tw() % s.th(), n = tile / (s.tw() * s.th());
  for (int i = 0; i < kSize; ++i) {
    const int64_t row = 4 * ty + offset + i;
    for (int j = 0; j < kSize; ++j) {
      const int64_t col = 4 * tx + offset + j;
      const bool inside = row >= 0 && row < s.h && col >= 0 && col < s.w;
      ptr[i * kSize + j] = inside ? x + ((n * s.h + row) * s.w + col) * s.c : zero;
    }
  }
}

// B^T d B of tiles [first, first + count) -> v[36][count][stride]; channels padded to whole vectors.
void TransformInput(const float* x, const Shape& s, int64_t first, int64_t count, const float* zero,
                    int64_t stride, float* v) {
  const float* ptr[kFreq];
  for (int64_t t = 0; t < count; ++t) {
    PixelPointers<6>(x, s, first + t, -1, zero, ptr);
    for (int64_t c = 0; c < s.c; c += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, s.c - c));
      Vec half[6][6], d[6], o[6];
      for (int j = 0; j < 6; ++j) {
        for (int i = 0; i < 6; ++i) d[i] = Load(ptr[i * 6 + j] + c, lanes);
        InputTransform(d, o);
        for (int i = 0; i < 6; ++i) half[i][j] = o[i];
      }
      for (int i = 0; i < 6; ++i) {
        InputTransform(half[i], o);
        for (int j = 0; j < 6; ++j) Store(v + ((i * 6 + j) * count + t) * stride + c, o[j], kLanes);
      }
    }
  }
}

// m[rows][P] = v[rows][stride] (first `depth` columns) x u[depth][P].
template <int kRows>
inline void PanelProduct(const float* v, int64_t stride, const float* u, int64_t depth, float* m) {
  Vec acc[kRows][2] = {};
  for (int64_t c = 0; c < depth; ++c) {
    const Vec u0 = LoadFull(u + c * kPanel), u1 = LoadFull(u + c * kPanel + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const float a = v[r * stride + c];
      acc[r][0] += a * u0;
      acc[r][1] += a * u1;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    StoreFull(m + r * kPanel, acc[r][0]);
    StoreFull(m + r * kPanel + kLanes, acc[r][1]);
  }
}

template <int kRows>
void PanelRows(int64_t rows, const float* v, int64_t stride, const float* u, int64_t depth, float* m) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return PanelProduct<kRows>(v, stride, u, depth, m);
    PanelRows<kRows - 1>(rows, v, stride, u, depth, m);
  }
}

void Product(int64_t rows, const float* v, int64_t stride, const float* u, int64_t depth, float* m) {
  const int64_t blocks = CeilDiv(rows, kMaxRows);
  for (int64_t b = 0, r = 0; b < blocks; ++b) {  // even blocks: 32 rows as 11 + 11 + 10
    const int64_t take = CeilDiv(rows - r, blocks - b);
    PanelRows<kMaxRows>(take, v + r * stride, stride, u, depth, m + r * kPanel);
    r += take;
  }
}

// A^T m A + bias of one panel of output channels [k, k + kPanel) -> y.
void TransformOutput(const float* m, const Shape& s, int64_t first, int64_t count, const float* bias,
                     int64_t k, float* y) {
  const int64_t th = s.th(), tw = s.tw();
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tile = first + t, tx = tile % tw, ty = tile / tw % th, n = tile / (tw * th);
    const int64_t rows = std::min<int64_t>(4, s.h - 4 * ty), cols = std::min<int64_t>(4, s.w - 4 * tx);
    for (int part = 0; part < 2; ++part) {
      const int64_t channel = k + part * kLanes;
      if (channel >= s.c) break;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, s.c - channel));
      Vec half[4][6], d[6], o[4];
      for (int j = 0; j < 6; ++j) {
        for (int i = 0; i < 6; ++i)
          d[i] = LoadFull(m + ((i * 6 + j) * count + t) * kPanel + part * kLanes);
        OutputTransform(d, o);
        for (int i = 0; i < 4; ++i) half[i][j] = o[i];
      }
      const Vec b = bias ? Load(bias + channel, lanes) : Vec{};
      for (int64_t i = 0; i < rows; ++i) {
        OutputTransform(half[i], o);
        float* out = y + ((n * s.h + 4 * ty + i) * s.w + 4 * tx) * s.c + channel;
        for (int64_t j = 0; j < cols; ++j) Store(out + j * s.c, o[j] + b, lanes);
      }
    }
  }
}

// y [N,H,W,K] = conv(x [N,H,W,C], u) + bias.
void Convolve(ffi::ThreadPool& pool, const float* x, const Shape& in, const float* u, const float* bias,
              int64_t k, float* y) {
  const Shape out{in.n, in.h, in.w, k};
  const int64_t stride = CeilDiv(in.c, kLanes) * kLanes;
  const int64_t panels = CeilDiv(k, kPanel), tiles = in.tiles();
  const int64_t fit = BlockBytes() / (kFreq * stride * static_cast<int64_t>(sizeof(float)));
  int64_t block = std::clamp<int64_t>(fit / kMaxRows, 2, 8) * kMaxRows;
  block = CeilDiv(tiles, CeilDiv(tiles, block));  // equal blocks
  const int64_t blocks = CeilDiv(tiles, block);
  // Too few blocks to share out: split the output channels too, at the price of transforming again.
  const int64_t wanted = 4 * NumThreads(pool);
  const int64_t splits = std::clamp<int64_t>(wanted / blocks, 1, panels);
  const int64_t per = CeilDiv(panels, splits);
  ParallelFor(pool, blocks * CeilDiv(panels, per), [=](int64_t task) {
    const int64_t first = task / CeilDiv(panels, per) * block;
    const int64_t begin = task % CeilDiv(panels, per) * per, end = std::min(begin + per, panels);
    const int64_t count = std::min(block, tiles - first);
    Scratch v(kFreq * count * stride), m(kFreq * count * kPanel), zero(stride);
    std::fill_n(zero.data(), stride, 0.f);
    TransformInput(x, in, first, count, zero.data(), stride, v.data());
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int f = 0; f < kFreq; ++f)
        Product(count, v.data() + f * count * stride, stride, u + (f * panels + panel) * in.c * kPanel,
                in.c, m.data() + f * count * kPanel);
      TransformOutput(m.data(), out, first, count, bias, panel * kPanel, y);
    }
  });
}

// g [3,3,C,K] -> u [36, panels, C, P]. `flip`: the kernel of the input gradient, g[::-1, ::-1] with C
// and K swapped (u is then [36, panels of C, K, P]).
void TransformWeights(ffi::ThreadPool& pool, const float* g, int64_t c, int64_t k, bool flip, float* u) {
  const int64_t depth = flip ? k : c, width = flip ? c : k, panels = CeilDiv(width, kPanel);
  constexpr int64_t kRows = kLanes;  // rows of `depth` per task
  ParallelFor(pool, CeilDiv(depth, kRows) * panels, [=](int64_t task) {
    const int64_t panel = task % panels, first = task / panels * kRows;
    const int64_t rows = std::min(kRows, depth - first);
    // The block of taps as [9][rows][P], then its products as [36][rows][P]: `u` is written in runs, since
    // its 36 planes lie a power of two apart and would evict each other.
    Scratch taps(9 * kRows * kPanel), products(kFreq * kRows * kPanel);
    const int64_t cols = std::min<int64_t>(kPanel, width - panel * kPanel);
    std::fill_n(taps.data(), 9 * kRows * kPanel, 0.f);
    for (int tap = 0; tap < 9; ++tap) {
      float* to = taps.data() + tap * kRows * kPanel;
      const float* from = g + (flip ? 8 - tap : tap) * c * k;
      if (flip) {
        for (int64_t col = 0; col < cols; ++col)
          for (int64_t r = 0; r < rows; ++r)
            to[r * kPanel + col] = from[(panel * kPanel + col) * k + first + r];
      } else {
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(to + r * kPanel, from + (first + r) * k + panel * kPanel, cols * sizeof(float));
      }
    }
    for (int64_t i = 0; i < rows * kPanel; i += kLanes) {
      Vec half[6][3], o[6];
      for (int j = 0; j < 3; ++j) {
        Vec column[3];
        for (int t = 0; t < 3; ++t) column[t] = LoadFull(taps.data() + (t * 3 + j) * kRows * kPanel + i);
        WeightTransform(column, o);
        for (int f = 0; f < 6; ++f) half[f][j] = o[f];
      }
      for (int f = 0; f < 6; ++f) {
        WeightTransform(half[f], o);
        for (int j = 0; j < 6; ++j)
          StoreFull(products.data() + (f * 6 + j) * kRows * kPanel + i, o[j]);
      }
    }
    for (int f = 0; f < kFreq; ++f)
      std::memcpy(u + ((f * panels + panel) * depth + first) * kPanel,
                  products.data() + f * kRows * kPanel, rows * kPanel * sizeof(float));
  });
}

// acc[rows][k..] += sum over tiles of v[tile][rows] g[tile][two vectors].
template <int kRows>
inline void OuterProduct(const float* v, int64_t v_stride, const float* g, int64_t g_stride, int64_t count,
                         float* acc, int64_t acc_stride) {
  Vec a[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    a[r][0] = LoadFull(acc + r * acc_stride);
    a[r][1] = LoadFull(acc + r * acc_stride + kLanes);
  }
  for (int64_t t = 0; t < count; ++t) {
    const Vec g0 = LoadFull(g + t * g_stride), g1 = LoadFull(g + t * g_stride + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const float s = v[t * v_stride + r];
      a[r][0] += s * g0;
      a[r][1] += s * g1;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    StoreFull(acc + r * acc_stride, a[r][0]);
    StoreFull(acc + r * acc_stride + kLanes, a[r][1]);
  }
}

template <int kRows>
void OuterRows(int64_t rows, const float* v, int64_t vs, const float* g, int64_t gs, int64_t count,
               float* acc, int64_t as) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return OuterProduct<kRows>(v, vs, g, gs, count, acc, as);
    OuterRows<kRows - 1>(rows, v, vs, g, gs, count, acc, as);
  }
}

// Row i (of 6) of B^T d B -> v[6][count][stride] for channels [c0, c1).
void TransformInputRow(const float* x, const Shape& s, int64_t first, int64_t count, int row, int64_t c0,
                       int64_t c1, const float* zero, int64_t stride, float* v) {
  const float* ptr[kFreq];
  for (int64_t t = 0; t < count; ++t) {
    PixelPointers<6>(x, s, first + t, -1, zero, ptr);
    for (int64_t c = c0; c < c1; c += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, c1 - c));
      auto at = [&](int i, int j) { return Load(ptr[i * 6 + j] + c, lanes); };
      Vec half[6], o[6];
      for (int j = 0; j < 6; ++j) {
        switch (row) {
          case 0: half[j] = 4.f * at(0, j) - 5.f * at(2, j) + at(4, j); break;
          case 1: half[j] = at(4, j) - 4.f * at(2, j) + (at(3, j) - 4.f * at(1, j)); break;
          case 2: half[j] = at(4, j) - 4.f * at(2, j) - (at(3, j) - 4.f * at(1, j)); break;
          case 3: half[j] = at(4, j) - at(2, j) + 2.f * (at(3, j) - at(1, j)); break;
          case 4: half[j] = at(4, j) - at(2, j) - 2.f * (at(3, j) - at(1, j)); break;
          default: half[j] = 4.f * at(1, j) - 5.f * at(3, j) + at(5, j);
        }
      }
      InputTransform(half, o);
      for (int j = 0; j < 6; ++j) StoreFull(v + (j * count + t) * stride + (c - c0), o[j]);
    }
  }
}

// Row i of A g A^T -> w[6][count][stride], all channels, zero-filled to whole panels.
void TransformGradientRow(const float* g, const Shape& s, int64_t first, int64_t count, int row,
                          const float* zero, int64_t stride, float* w) {
  const float* ptr[16];
  for (int64_t t = 0; t < count; ++t) {
    PixelPointers<4>(g, s, first + t, 0, zero, ptr);
    for (int64_t c = 0; c < stride; c += kLanes) {
      const int lanes = static_cast<int>(std::clamp<int64_t>(s.c - c, 0, kLanes));
      auto at = [&](int i, int j) { return Load(ptr[i * 4 + j] + c, lanes); };
      Vec half[4], o[6];
      for (int j = 0; j < 4; ++j) {
        switch (row) {
          case 0: half[j] = at(0, j); break;
          case 1: half[j] = at(0, j) + at(2, j) + (at(1, j) + at(3, j)); break;
          case 2: half[j] = at(0, j) + at(2, j) - (at(1, j) + at(3, j)); break;
          case 3: half[j] = at(0, j) + 4.f * at(2, j) + (2.f * at(1, j) + 8.f * at(3, j)); break;
          case 4: half[j] = at(0, j) + 4.f * at(2, j) - (2.f * at(1, j) + 8.f * at(3, j)); break;
          default: half[j] = at(3, j);
        }
      }
      GradientTransform(half, o);
      for (int j = 0; j < 6; ++j) StoreFull(w + (j * count + t) * stride + c, o[j]);
    }
  }
}

// dg [3,3,C,K] from x [N,H,W,C] and the output's gradient g [N,H,W,K].
void WeightGradient(ffi::ThreadPool& pool, const float* x, const Shape& in, const float* g, int64_t k,
                    float* dg) {
  const Shape out{in.n, in.h, in.w, k};
  const int64_t width = CeilDiv(k, kPanel) * kPanel, tiles = in.tiles(), c = in.c;
  const int64_t zeros = std::max(width, CeilDiv(c, kLanes) * kLanes);
  Scratch products(kFreq * c * width);
  float* const du = products.data();  // [36][C][width]
  // A task is one of the six rows of products and a range of input channels.
  const int64_t ranges = CeilDiv(c, 64), per = CeilDiv(CeilDiv(c, ranges), kLanes) * kLanes;
  ParallelFor(pool, 6 * CeilDiv(c, per), [=](int64_t task) {
    const int row = static_cast<int>(task % 6);
    const int64_t c0 = task / 6 * per, c1 = std::min(c, c0 + per);
    const int64_t fit = BlockBytes() / (6 * (per + width) * static_cast<int64_t>(sizeof(float)));
    const int64_t block = std::min<int64_t>(tiles, std::clamp<int64_t>(fit, 16, 256));
    Scratch v(6 * block * per), w(6 * block * width), zero(zeros);
    std::fill_n(zero.data(), zeros, 0.f);
    for (int j = 0; j < 6; ++j)
      std::fill_n(du + ((row * 6 + j) * c + c0) * width, (c1 - c0) * width, 0.f);
    for (int64_t first = 0; first < tiles; first += block) {
      const int64_t count = std::min(block, tiles - first);
      TransformInputRow(x, in, first, count, row, c0, c1, zero.data(), per, v.data());
      TransformGradientRow(g, out, first, count, row, zero.data(), width, w.data());
      for (int j = 0; j < 6; ++j) {
        float* acc = du + (row * 6 + j) * c * width;
        for (int64_t channel = c0; channel < c1;) {
          const int64_t groups = CeilDiv(c1 - channel, kMaxRows);
          const int64_t rows = CeilDiv(c1 - channel, groups);
          for (int64_t col = 0; col < width; col += kPanel)
            OuterRows<kMaxRows>(rows, v.data() + j * count * per + (channel - c0), per,
                                w.data() + j * count * width + col, width, count,
                                acc + channel * width + col, width);
          channel += rows;
        }
      }
    }
  });
  const int64_t chunk = 8;
  ParallelFor(pool, CeilDiv(c, chunk), [=](int64_t task) {
    for (int64_t channel = task * chunk; channel < std::min(c, (task + 1) * chunk); ++channel) {
      for (int64_t col = 0; col < k; col += kLanes) {
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes, k - col));
        Vec half[3][6], d[6], o[3];
        for (int j = 0; j < 6; ++j) {
          for (int i = 0; i < 6; ++i) d[i] = LoadFull(du + ((i * 6 + j) * c + channel) * width + col);
          WeightGradientTransform(d, o);
          for (int i = 0; i < 3; ++i) half[i][j] = o[i];
        }
        for (int i = 0; i < 3; ++i) {
          WeightGradientTransform(half[i], o);
          for (int j = 0; j < 3; ++j) Store(dg + ((i * 3 + j) * c + channel) * k + col, o[j], lanes);
        }
      }
    }
  });
}

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::Result<F32>;

Shape Image(const F32& x) {
  const auto d = x.dimensions();
  return {d[0], d[1], d[2], d[3]};
}

const float* OrNull(const F32& x) { return x.element_count() > 0 ? x.typed_data() : nullptr; }

ffi::Error ConvHandler(ffi::ThreadPool pool, F32 x, F32 u, F32 bias, F32Result y) {
  Convolve(pool, x.typed_data(), Image(x), u.typed_data(), OrNull(bias), y->dimensions()[3],
           y->typed_data());
  return ffi::Error::Success();
}

// The same from the kernel itself (`flip`: of the input's gradient). Transformed here and not by the caller:
// XLA would transform the weights of the whole network first and keep them all.
ffi::Error KernelConvHandler(ffi::ThreadPool pool, bool flip, F32 x, F32 g, F32 bias, F32Result y) {
  const auto d = g.dimensions();
  const int64_t depth = flip ? d[3] : d[2], width = flip ? d[2] : d[3];
  Scratch u(kFreq * CeilDiv(width, kPanel) * kPanel * depth);
  TransformWeights(pool, g.typed_data(), d[2], d[3], flip, u.data());
  Convolve(pool, x.typed_data(), Image(x), u.data(), OrNull(bias), width, y->typed_data());
  return ffi::Error::Success();
}

ffi::Error WeightsHandler(ffi::ThreadPool pool, F32 g, F32Result u) {
  const auto d = g.dimensions();
  TransformWeights(pool, g.typed_data(), d[2], d[3], false, u->typed_data());
  return ffi::Error::Success();
}

ffi::Error WeightGradientHandler(ffi::ThreadPool pool, F32 x, F32 g, F32Result dg) {
  WeightGradient(pool, x.typed_data(), Image(x), g.typed_data(), g.dimensions()[3], dg->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cldm

XLA_FFI_DEFINE_HANDLER_SYMBOL(cldm_winograd_conv, cldm::ConvHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cldm::F32>()
                                  .Arg<cldm::F32>()
                                  .Arg<cldm::F32>()
                                  .Ret<cldm::F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cldm_winograd_kernel_conv, cldm::KernelConvHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("flip")
                                  .Arg<cldm::F32>()
                                  .Arg<cldm::F32>()
                                  .Arg<cldm::F32>()
                                  .Ret<cldm::F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cldm_winograd_weights, cldm::WeightsHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cldm::F32>()
                                  .Ret<cldm::F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(cldm_winograd_weight_gradient, cldm::WeightGradientHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cldm::F32>()
                                  .Arg<cldm::F32>()
                                  .Ret<cldm::F32>());

// Output channels per panel: the host language needs it to size the transformed weights.
extern "C" int cldm_panel() { return cldm::kPanel; }

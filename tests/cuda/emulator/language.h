/* What CUDA C++ has beyond C++, as far as kernels use it. Include it before the generated source, with
 * MR_EMULATE defined, then write MR_KERNEL(name) for each kernel. */
#pragma once
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) alignas(n)
#define uint unsigned
#define uchar unsigned char
#define ushort unsigned short
#define threadIdx (mr::self->thread)
#define blockIdx (mr::block.index)
#define blockDim (mr::block.block)
#define gridDim (mr::block.grid)
#define __syncthreads() ((void)mr::arrive(mr::block.barrier, mr::block.alive))
static inline void __syncwarp(unsigned mask = ~0u) { mr::meet(mask); }
#define __activemask() (mr::active_mask())

#define MR_VECTOR(T, name, align)                                                                  \
  struct alignas(align) name##2 { T x, y; };                                                       \
  struct alignas(2 * align) name##4 { T x, y, z, w; };                                             \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
MR_VECTOR(int, int, 8)
MR_VECTOR(unsigned, uint, 8)
MR_VECTOR(float, float, 8)

template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int by, int = 32) {
  return mr::shuffle(mask, v, mr::self->lane ^ (unsigned)by);
}
template <class T> static inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return mr::shuffle(mask, v, mr::self->lane / width * width + lane % width);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, int by, int width = 32) {
  unsigned place = mr::self->lane % width + by;
  return mr::shuffle(mask, v, place < (unsigned)width ? mr::self->lane + by : mr::self->lane);
}

/* c + four products of bytes of a with signed bytes of b */
template <class A> static inline int mr_emulate_dot(unsigned a, unsigned b, int c) {
  for (int i = 0; i < 4; i++) c += (int)(A)(a >> (8 * i)) * (int)(int8_t)(b >> (8 * i));
  return c;
}
static inline void mr_emulate_load(void *to, const void *from, unsigned bytes) {
  if ((uintptr_t)from % bytes) mr::die("misaligned load");
  memcpy(to, from, bytes);
}
static inline void mr_emulate_store(void *to, const void *from, unsigned bytes) {
  if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) mr::die("misaligned store");
  memcpy(to, from, bytes);
  mr::self->hidden.push_back({to, bytes});
}
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }

static inline void mr_emulate_cp_async(void *to, const void *from, unsigned bytes) {
  if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) mr::die("misaligned asynchronous copy");
  if (!mr::block.late) {
    memcpy(to, from, bytes);
    return;
  }
  memset(to, mr::POISON, bytes);
  mr::self->copies.push_back({to, from, bytes, mr::self->group});
}
static inline void mr_emulate_cp_commit() { mr::self->group++; }
static inline void mr_emulate_cp_wait(unsigned pending) {
  std::vector<mr::Copy> rest;
  for (const mr::Copy &copy : mr::self->copies) {
    if (copy.group + pending >= mr::self->group) {
      rest.push_back(copy);
      continue;
    }
    memcpy(copy.to, copy.from, copy.bytes);
    mr::self->hidden.push_back({copy.to, copy.bytes});
  }
  mr::self->copies.swap(rest);
}

/* mma.sync m16n8k32, s8 times s8: d += a * b */
static inline void mr_emulate_multiply_bytes(int *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                             unsigned b0, unsigned b1) {
  struct In { unsigned a[4], b[2]; int d[4]; };
  struct Out { int d[4]; };
  In mine = {{a0, a1, a2, a3}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  Out out = mr::collective<In, Out>(mine, [](const In *in, Out *out) {
    int8_t a[16][32], b[8][32];
    for (int lane = 0; lane < 32; lane++) {
      int row = lane / 4, k = lane % 4 * 4;
      for (int i = 0; i < 4; i++) memcpy(&a[row + i % 2 * 8][k + i / 2 * 16], &in[lane].a[i], 4);
      for (int i = 0; i < 2; i++) memcpy(&b[row][k + i * 16], &in[lane].b[i], 4);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        unsigned sum = (unsigned)in[lane].d[i];
        for (int k = 0; k < 32; k++) sum += (unsigned)(a[row][k] * b[column][k]);
        out[lane].d[i] = (int)sum;
      }
  });
  memcpy(d, out.d, sizeof out.d);
}

static inline float mr_half_to_float(uint16_t h);
/* mma.sync m16n8k16, halves with float sums */
static inline void mr_emulate_multiply_halves(float *d, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                              unsigned b0, unsigned b1) {
  struct In { unsigned a[4], b[2]; float d[4]; };
  struct Out { float d[4]; };
  In mine = {{a0, a1, a2, a3}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  Out out = mr::collective<In, Out>(mine, [](const In *in, Out *out) {
    uint16_t a[16][16], b[8][16];
    for (int lane = 0; lane < 32; lane++) {
      int row = lane / 4, k = lane % 4 * 2;
      for (int i = 0; i < 4; i++) memcpy(&a[row + i % 2 * 8][k + i / 2 * 8], &in[lane].a[i], 4);
      for (int i = 0; i < 2; i++) memcpy(&b[row][k + i * 8], &in[lane].b[i], 4);
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = in[lane].d[i];
        for (int k = 0; k < 16; k++) sum += (double)mr_half_to_float(a[row][k]) * mr_half_to_float(b[column][k]);
        out[lane].d[i] = (float)sum;
      }
  });
  memcpy(d, out.d, sizeof out.d);
}

/* wgmma: one warp's 16 of 64 rows, which is all that a lane's sums depend on */
static inline void mr_emulate_show() { mr::self->hidden.clear(); }
static inline void mr_emulate_begin_products() { mr::self->may_multiply = true; }
static inline void mr_emulate_check_shown(const char *b, int leading, int bytes) {
  for (unsigned i = 0; i < mr::block.threads; i++)
    for (const mr::Hidden &one : mr::block.fibers[i].hidden)
      for (const char *part = b; part <= b + leading; part += leading)
        if ((const char *)one.at < part + bytes && part < (const char *)one.at + one.bytes)
          mr::die("a product reads what is not shown to warpgroups");
}
static inline void mr_emulate_make_product(const mr::Product &one) {
  struct In { unsigned a[4]; };
  struct Out { uint16_t rows[2][16]; };
  mr_emulate_check_shown(one.b, one.leading, 16 * one.tokens);
  In mine;
  memcpy(mine.a, one.a, sizeof mine.a);
  Out own = mr::collective<In, Out>(mine, [](const In *in, Out *out) {
    for (int lane = 0; lane < 32; lane++)
      for (int other = lane / 4 * 4; other < lane / 4 * 4 + 4; other++)
        for (int i = 0; i < 4; i++) memcpy(&out[lane].rows[i % 2][other % 4 * 2 + i / 2 * 8], &in[other].a[i], 4);
  });
  for (int i = 0; i < one.tokens / 2; i++) {
    int token = i / 4 * 8 + (int)(mr::self->lane % 4) * 2 + i % 2;
    double sum = one.d[i];
    for (int k = 0; k < 16; k++) {
      uint16_t x; /* eights of tokens are 128 bytes apart, eights of channels `leading` */
      memcpy(&x, one.b + k / 8 * one.leading + token / 8 * 128 + token % 8 * 16 + k % 8 * 2, 2);
      sum += (double)mr_half_to_float(own.rows[i / 2 % 2][k]) * mr_half_to_float(x);
    }
    one.d[i] = (float)sum;
  }
}
static inline void mr_emulate_multiply_rows(float *d, int tokens, const unsigned *a, const void *b, int leading) {
  if (!mr::self->may_multiply) mr::die("a product without a fence of its registers");
  if (mr::block.threads % 128) mr::die("a product without a whole warpgroup");
  if ((uintptr_t)b % 16 || leading % 16) mr::die("a misaligned product");
  mr::Product one = {d, tokens, a, (const char *)b, leading};
  if (!mr::block.late) mr_emulate_make_product(one);
  bool known = false;
  for (const mr::Sums &sums : mr::self->sums) known |= sums.at == d;
  if (!known) mr::self->sums.push_back({d, std::vector<float>(d, d + tokens / 2)});
  if (mr::block.late) memset(d, mr::POISON, tokens / 2 * sizeof *d);
  mr::self->products.push_back(one);
}
static inline void mr_emulate_commit_products() {
  mr::self->may_multiply = false;
  mr::self->committed = (unsigned)mr::self->products.size();
}
static inline void mr_emulate_wait_products() {
  if (mr::self->committed < mr::self->products.size()) mr::die("products that were not committed");
  if (mr::block.late) {
    for (const mr::Sums &sums : mr::self->sums)
      memcpy(sums.at, sums.before.data(), sums.before.size() * sizeof(float));
    for (const mr::Product &one : mr::self->products) mr_emulate_make_product(one);
  }
  mr::self->products.clear();
  mr::self->sums.clear();
  mr::self->committed = 0;
}

static inline float mr_half_to_float(uint16_t h) {
  unsigned sign = (unsigned)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023, bits;
  if (exponent == 31) bits = sign | 0x7F800000 | mantissa << 13;
  else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
  else { float f = (float)mantissa / 16777216.0f; memcpy(&bits, &f, 4); bits |= sign; }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
/* to nearest, ties to even; exact for the double result of one product or sum of halves */
static inline uint16_t mr_double_to_half(double v) {
  uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  v = std::fabs(v);
  if (v == 0) return sign;
  if (std::isnan(v)) return sign | 0x7E00;
  if (v >= 65520.0) return sign | 0x7C00;
  int e;
  std::frexp(v, &e);              /* v < 2^e */
  int shift = e < -13 ? -24 : e - 11; /* unit in the last place */
  double units = std::nearbyint(std::ldexp(v, -shift));
  if (e < -13) return sign | (uint16_t)units; /* subnormal; 1024 units are the smallest normal */
  return sign | (uint16_t)(((unsigned)(e + 14) << 10) + (unsigned)units - 1024);
}
static inline unsigned mr_emulate_scaled_halves(unsigned word, unsigned scales) {
  unsigned pair = 0;
  for (int i = 0; i < 2; i++) {
    double scale = mr_half_to_float((uint16_t)(scales >> 16 * i)), code = (int)(word >> 8 * i & 255) - 128;
    pair |= (unsigned)mr_double_to_half(code * scale) << 16 * i;
  }
  return pair;
}
struct half {
  uint16_t bits;
  half() = default;
  half(float value) : bits(mr_double_to_half(value)) {}
  operator float() const { return mr_half_to_float(bits); }
};

/* What a mock driver or ctypes calls; `arguments` as for cuLaunchKernel. */
namespace mr {
template <class... A> struct Sizes {
  static constexpr int value[] = {(int)sizeof(A)..., 0};
  constexpr Sizes(void (*)(A...)) {}
};
} // namespace mr
#define MR_KERNEL(name)                                                                            \
  extern "C" const int *name##_sizes_of() { return decltype(mr::Sizes(name))::value; }             \
  extern "C" void name##_launch(const unsigned *grid, const unsigned *threads, unsigned shared,    \
                                void **arguments, int order, int late) {                           \
    mr::block.order = order;                                                                       \
    mr::block.late = late;                                                                         \
    mr::launch(#name, name, {grid[0], grid[1], grid[2]}, {threads[0], threads[1], threads[2]},     \
               shared, arguments);                                                                 \
  }

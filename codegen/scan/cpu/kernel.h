// Helpers of generated scans: storage types, elementary functions that vectorise, products of small matrices, triangular systems.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

struct bf16 { uint16_t bits; };
#if defined(__aarch64__)
using f16 = __fp16;  // where GNU's compilers know _Float16 in C++ from their 13th version on only
#else
using f16 = _Float16;
#endif

static inline float widen(bf16 x) { uint32_t u = (uint32_t)x.bits << 16; float f; memcpy(&f, &u, 4); return f; }
template <class S> static inline S widen(S x) { return x; }
static inline void narrow(bf16& to, float x) {
  uint32_t u; memcpy(&u, &x, 4);
  to.bits = x != x ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
template <class S, class T> static inline void narrow(S& to, T x) { to = (S)x; }

static inline long floor_div(long a, long b) { long q = a / b; return q - ((a % b != 0) && ((a < 0) != (b < 0))); }
static inline long floor_mod(long a, long b) { return a - floor_div(a, b) * b; }
static inline long inside(long x, long n) { return x < 0 ? 0 : x >= n ? (n > 0 ? n - 1 : 0) : x; }

// 2^n * p(r) with |r| <= ln 2 / 2: a polynomial of degree 7, and the power of two in two steps so that its ends come out right
static inline float fast_exp(float x) {
  x = std::min(std::max(x, -104.0f), 104.0f);
  float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040; p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120; p = p * r + 1.0f / 24; p = p * r + 1.0f / 6; p = p * r + 0.5f; p = p * r + 1.0f; p = p * r + 1.0f;
  int32_t whole = (int32_t)n, half = whole >> 1;
  int32_t a = (half + 127) << 23, b = (whole - half + 127) << 23;
  float s, t; memcpy(&s, &a, 4); memcpy(&t, &b, 4);
  return p * s * t;
}
static inline double fast_exp(double x) { return std::exp(x); }
template <class T> static inline T sigmoid(T x) { T t = fast_exp(-std::abs(x)), s = 1 / (1 + t); return x >= 0 ? s : t * s; }
template <class T> static inline T softplus(T x) { return std::max(x, (T)0) + std::log1p(fast_exp(-std::abs(x))); }
template <class T> static inline T sign(T x) { return (T)((x > 0) - (x < 0)); }

constexpr long LANES = 64 / sizeof(T);
typedef T Lanes __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));

// c[x, y] (+)= sum over r of a[x, r] * b[r, y]: ROWS x VECTORS registers of sums
template <int ROWS, int VECTORS, bool ADD>
static inline void tile(long K, const T* a, long a_x, long a_r, const T* b, long b_r, T* c, long c_x) {
  Lanes sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int x = 0; x < ROWS; ++x)
#pragma GCC unroll 8
    for (int y = 0; y < VECTORS; ++y) sum[x][y] = ADD ? *(const Lanes*)(c + x * c_x + y * LANES) : Lanes{};
  for (long r = 0; r < K; ++r) {
    Lanes right[VECTORS];
#pragma GCC unroll 8
    for (int y = 0; y < VECTORS; ++y) right[y] = *(const Lanes*)(b + r * b_r + y * LANES);
#pragma GCC unroll 8
    for (int x = 0; x < ROWS; ++x) {
      const T left = a[x * a_x + r * a_r];
#pragma GCC unroll 8
      for (int y = 0; y < VECTORS; ++y) sum[x][y] += left * right[y];
    }
  }
#pragma GCC unroll 8
  for (int x = 0; x < ROWS; ++x)
#pragma GCC unroll 8
    for (int y = 0; y < VECTORS; ++y) *(Lanes*)(c + x * c_x + y * LANES) = sum[x][y];
}
template <int VECTORS, bool ADD>
static inline void strip(long M, long K, const T* a, long a_x, long a_r, const T* b, long b_r, T* c, long c_x) {
  long x = 0;
  for (; x + 6 <= M; x += 6) tile<6, VECTORS, ADD>(K, a + x * a_x, a_x, a_r, b, b_r, c + x * c_x, c_x);
  for (; x + 2 <= M; x += 2) tile<2, VECTORS, ADD>(K, a + x * a_x, a_x, a_r, b, b_r, c + x * c_x, c_x);
  for (; x < M; ++x) tile<1, VECTORS, ADD>(K, a + x * a_x, a_x, a_r, b, b_r, c + x * c_x, c_x);
}
// rows of b and c are readable and writable up to the next multiple of LANES
template <bool ADD = false>
static void multiply(long M, long N, long K, const T* a, long a_x, long a_r, const T* b, long b_r, T* c, long c_x) {
  long y = 0;
  for (; y + 4 * LANES <= N; y += 4 * LANES) strip<4, ADD>(M, K, a, a_x, a_r, b + y, b_r, c + y, c_x);
  for (; y < N; y += LANES) strip<1, ADD>(M, K, a, a_x, a_r, b + y, b_r, c + y, c_x);
}
// to[y, x] = from[x, y]
static void transpose(long X, long Y, const T* from, long from_x, T* to, long to_y) {
  for (long x0 = 0; x0 < X; x0 += LANES)
    for (long y = 0; y < Y; ++y)
      for (long x = x0, end = std::min(X, x0 + LANES); x < end; ++x) to[y * to_y + x] = from[x * from_x + y];
}
// u = known + m u with m strictly lower triangular (upwards: u = known + m^T u); u and known are n x N with rows `row` apart
static void solve(bool upwards, long n, long N, const T* m, long m_row, const T* known, T* u, long row) {
  const long BLOCK = 16;
  const long m_x = upwards ? 1 : m_row, m_r = upwards ? m_row : 1;
  const long blocks = (n + BLOCK - 1) / BLOCK;
  for (long k = 0; k < blocks; ++k) {
    const long at = upwards ? blocks - 1 - k : k, lo = at * BLOCK, hi = std::min(n, lo + BLOCK);
    for (long x = lo; x < hi; ++x) memcpy(u + x * row, known + x * row, N * sizeof(T));
    const long from = upwards ? hi : 0, count = upwards ? n - hi : lo;
    if (count > 0 && N >= LANES && row % LANES == 0)
      multiply<true>(hi - lo, N, count, m + lo * m_x + from * m_r, m_x, m_r, u + from * row, row, u + lo * row, row);
    else
      for (long x = lo; x < hi; ++x)
        for (long r = from; r < from + count; ++r)
          for (long y = 0; y < N; ++y) u[x * row + y] += m[x * m_x + r * m_r] * u[r * row + y];
    for (long s = 0; s < hi - lo; ++s) {
      const long x = upwards ? hi - 1 - s : lo + s;
      for (long r = upwards ? x + 1 : lo; r < (upwards ? hi : x); ++r)
        for (long y = 0; y < N; ++y) u[x * row + y] += m[x * m_x + r * m_r] * u[r * row + y];
    }
  }
}

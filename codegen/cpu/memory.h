// Elements of memory: how each storage type widens to T (or an integer) and narrows back, and blocks of them with any stride.

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

INLINE float bit_float(uint32_t x) { float y; __builtin_memcpy(&y, &x, 4); return y; }
INLINE uint32_t float_bit(float x) { uint32_t y; __builtin_memcpy(&y, &x, 4); return y; }

INLINE T wide(double x) { return (T)x; }
INLINE T wide(float x) { return (T)x; }
INLINE T wide(bf16 x) { return (T)bit_float((uint32_t)x.bits << 16); }
INLINE T wide(f16 h) {
  uint32_t sign = (uint32_t)(h.bits & 0x8000) << 16, rest = (uint32_t)(h.bits & 0x7fff) << 13;
  float x = bit_float(rest) * 0x1p112f;  // scales subnormals too
  if (x >= 65536.f) x = bit_float(rest | 0x7f800000);  // inf and NaN
  return (T)bit_float(float_bit(x) | sign);
}
INLINE long wide(int64_t x) { return (long)x; }
INLINE long wide(int32_t x) { return x; }
INLINE long wide(int16_t x) { return x; }
INLINE long wide(int8_t x) { return x; }
INLINE long wide(uint8_t x) { return x; }
INLINE bool wide(bool x) { return x; }

INLINE void narrow(double* p, T x) { *p = (double)x; }
INLINE void narrow(float* p, T x) { *p = (float)x; }
INLINE void narrow(bf16* p, T x) {  // to nearest, ties to even
  uint32_t b = float_bit((float)x);
  p->bits = x != x ? 0x7fc0 : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
INLINE void narrow(f16* p, T value) {
  float x = (float)value;
  uint32_t b = float_bit(x), sign = b >> 16 & 0x8000, rest = b & 0x7fffffff;
  if (rest > 0x7f800000) p->bits = 0x7e00;
  else if (rest >= 0x477ff000) p->bits = (uint16_t)(sign | 0x7c00);  // 65520 and more
  else if (rest < 0x38800000) p->bits = (uint16_t)(sign | (float_bit(bit_float(rest) + 0.5f) - 0x3f000000));  // subnormal
  else p->bits = (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}
template <class E> INLINE void narrow(E* p, long x) { *p = (E)x; }
template <class E> INLINE void narrow(E* p, bool x) { *p = (E)x; }
INLINE void narrow(bf16* p, long x) { narrow(p, (T)x); }
INLINE void narrow(f16* p, long x) { narrow(p, (T)x); }
INLINE void narrow(bf16* p, bool x) { narrow(p, (T)x); }
INLINE void narrow(f16* p, bool x) { narrow(p, (T)x); }

template <class E> struct Lanes { typedef VI type; };
template <> struct Lanes<double> { typedef V type; };
template <> struct Lanes<float> { typedef V type; };
template <> struct Lanes<bf16> { typedef V type; };
template <> struct Lanes<f16> { typedef V type; };
INLINE I lane(bool x) { return -(I)x; }
INLINE I lane(long x) { return (I)x; }
INLINE T lane(T x) { return x; }

// W neighbours in memory.
template <class E> INLINE typename Lanes<E>::type neighbours(const E* p) {
  typename Lanes<E>::type x;
  for (int l = 0; l < W; ++l) x[l] = lane(wide(p[l]));
  return x;
}
INLINE V neighbours(const T* p) { return load(p); }
INLINE V neighbours(const bf16* p) {
  typedef uint16_t half __attribute__((vector_size(2 * W)));
  typedef uint32_t word __attribute__((vector_size(4 * W)));
  typedef float single __attribute__((vector_size(4 * W)));
  half h;
  __builtin_memcpy(&h, p, sizeof h);
  word w = __builtin_convertvector(h, word) << 16;
  single s;
  __builtin_memcpy(&s, &w, sizeof s);
  return __builtin_convertvector(s, V);
}
template <class E> INLINE void put_neighbours(E* p, V x) { for (int l = 0; l < W; ++l) narrow(p + l, (T)x[l]); }
INLINE void put_neighbours(T* p, V x) { store(p, x); }
INLINE void put_neighbours(bf16* p, V x) {
  typedef uint16_t half __attribute__((vector_size(2 * W)));
  typedef uint32_t word __attribute__((vector_size(4 * W)));
  typedef float single __attribute__((vector_size(4 * W)));
  single s = __builtin_convertvector(x, single);
  word b;
  __builtin_memcpy(&b, &s, sizeof b);
  word r = (b + 0x7fff + (b >> 16 & 1)) >> 16;
  half h = __builtin_convertvector((word)(s == s ? r : (word{} + 0x7fc0)), half);
  __builtin_memcpy(p, &h, sizeof h);
}

// A vector of elements `stride` apart, of which the first n exist; the others are 0 and are not read.
template <class E> INLINE typename Lanes<E>::type load_along(const E* p, long stride, long n) {
  if (__builtin_expect(stride == 1 && n >= W, 1)) return neighbours(p);
  typename Lanes<E>::type x{};
  for (int l = 0; l < W; ++l) if (l < n) x[l] = lane(wide(p[l * stride]));
  return x;
}
typedef long VL __attribute__((vector_size(8 * W)));  // offsets in memory
INLINE VL far(VI x) { return __builtin_convertvector(x, VL); }
// A vector of elements at these offsets; lanes at n and beyond, or that are not `alive`, are 0 and are not read.
template <class E> INLINE typename Lanes<E>::type gather(const E* p, VL at, long n, VI alive) {
  typename Lanes<E>::type x{};
  for (int l = 0; l < W; ++l) if (l < n && alive[l]) x[l] = lane(wide(p[at[l]]));
  return x;
}
template <class E> INLINE typename Lanes<E>::type gather(const E* p, VL at, long n) {
  typename Lanes<E>::type x{};
  if (__builtin_expect(n >= W, 1)) for (int l = 0; l < W; ++l) x[l] = lane(wide(p[at[l]]));
  else for (int l = 0; l < n; ++l) x[l] = lane(wide(p[at[l]]));
  return x;
}
// The same at places `stride` apart. A table that is read at clipped distances is read at one place by all lanes, or at neighbours.
template <class E> INLINE typename Lanes<E>::type look_up(const E* p, VI at, long stride, long n) {
  if (__builtin_expect(n >= W, 1)) {
    const VI from = at - spread((long)at[0]);
    if (!some(from)) return lane(wide(p[at[0] * stride])) - typename Lanes<E>::type{};
    if (stride == 1 && !some(from - iota())) return neighbours(p + at[0]);
    if (stride == 1 && !some(from + iota())) return shuffled(neighbours(p + at[W - 1]), (I)(W - 1) - iota());
  }
  return gather(p, far(at) * stride, n);
}
// Adds the first n lanes at places of rows of so many entries, each lane to a row of its own, or all to one; what is at no place of them is
// left out. Most vectors of a table that is read at clipped distances have one place for all lanes, or neighbours.
INLINE void add_at(T* rows, long step, long entries, VI at, V x, long n) {
  if (n >= W && !some((at < 0) | (at >= (I)entries))) {
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) rows[l * step + at[l]] += x[l];
  } else {
    for (int l = 0; l < W; ++l) if (l < n && at[l] >= 0 && at[l] < entries) rows[l * step + at[l]] += x[l];
  }
}
INLINE void add_at(T* row, long entries, VI at, V x, long n) {
  const long first = at[0], last = at[W - 1];
  if (n >= W && (first < last ? first : last) >= 0 && (first < last ? last : first) < entries) {
    const VI from = at - spread(first);
    if (!some(from)) { row[first] += sum_of(x); return; }
    if (!some(from - iota())) { store(row + first, load(row + first) + x); return; }
    if (!some(from + iota())) { store(row + last, load(row + last) + shuffled(x, (I)(W - 1) - iota())); return; }
  }
  add_at(row, 0, entries, at, x, n);
}
INLINE void store_lane(auto* p, V x, int l, bool) { narrow(p, (T)x[l]); }
INLINE void store_lane(auto* p, VI x, int l, bool truth) { if (truth) narrow(p, x[l] != 0); else narrow(p, (long)x[l]); }
template <class E> INLINE void store_along(E* p, long stride, long n, V x) {
  if (__builtin_expect(stride == 1 && n >= W, 1)) { put_neighbours(p, x); return; }
  for (int l = 0; l < W; ++l) if (l < n) narrow(p + l * stride, (T)x[l]);
}
template <class E, class X, class At> INLINE void scatter(E* p, long n, At at, X x, bool truth) {
  for (int l = 0; l < W; ++l) if (l < n) store_lane(p + at(l), x, l, truth);
}
INLINE long clamped(long x, long n) { return x < 0 ? 0 : x >= n ? n - 1 : x; }
INLINE VI clamped(VI x, long n) { return maximum(minimum(x, spread(minimum(n - 1, 0x7fffffffL))), VI{}); }

// One step of a transposition: numbers whose row and column differ in bit S change places.
template <int S> INLINE void exchanged(VI* x) {
  const VI upper = (iota() & (I)S) != 0;
#pragma GCC unroll 16
  for (int k = 0; k < W; ++k)
    if (!(k & S)) {
      const VI a = x[k], b = x[k + S];
      x[k] = select(upper, shuffled(b, iota() ^ (I)S), a);
      x[k + S] = select(upper, b, shuffled(a, iota() ^ (I)S));
    }
}
template <int S = W / 2> INLINE void square_transposed(VI* x) {
  exchanged<S>(x);
  if constexpr (S > 1) square_transposed<S / 2>(x);
}
// to[c][r] = from[r][c], of numbers as wide as T
template <class E> static void transpose(E* to, long to_ld, const E* from, long from_ld, long rows, long columns) {
  static_assert(sizeof(E) == sizeof(I));
  long r = 0;
  for (; r + W <= rows; r += W) {
    long c = 0;
    for (; c + W <= columns; c += W) {
      VI x[W];
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) __builtin_memcpy(&x[k], from + (r + k) * from_ld + c, sizeof(VI));
      square_transposed(x);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) __builtin_memcpy(to + (c + k) * to_ld + r, &x[k], sizeof(VI));
    }
    for (; c < columns; ++c)
      for (long k = r; k < r + W; ++k) to[c * to_ld + k] = from[k * from_ld + c];
  }
  for (; r < rows; ++r)
    for (long c = 0; c < columns; ++c) to[c * to_ld + r] = from[r * from_ld + c];
}

// Operands of products in bf16, two neighbouring terms in 32 bits: one instruction multiplies both and adds them in single precision.
// Where the machine has no such instruction the halves are widened and added one after the other.

#define EINFUSE_PAIRS
struct Pair { uint32_t bits; };  // the first term is the low half
typedef uint32_t VP __attribute__((vector_size(BYTES)));
constexpr long pairs(long n) { return (n + 1) / 2; }

INLINE VP load(const Pair* p) { VP x; __builtin_memcpy(&x, p, sizeof x); return x; }
INLINE void store(Pair* p, VP x) { __builtin_memcpy(p, &x, sizeof x); }
INLINE VP spread(Pair x) { return x.bits - VP{}; }
INLINE VP bits_pair(V x) { VP y; __builtin_memcpy(&y, &x, sizeof y); return y; }
INLINE V pair_real(VP x) { V y; __builtin_memcpy(&y, &x, sizeof y); return y; }

INLINE V fused(V acc, VP x, VP y) {
#if defined(__AVX512BF16__)
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(x), "vm"(y));
  return acc;
#else
  acc += pair_real(x << 16) * pair_real(y << 16);
  return acc + pair_real(x & 0xffff0000) * pair_real(y & 0xffff0000);
#endif
}

// bf16 in the high half of every lane: to nearest, ties to even; NaN stays NaN.
INLINE VP rounded(V x) {
  const VP b = bits_pair(x);
  return ((VI)(x == x) ? b + 0x7fff + (b >> 16 & 1) : b | 0x400000) & 0xffff0000;
}
// W neighbours of a row as W / 2 pairs; lanes at n and beyond become 0.
INLINE void store_halves(Pair* p, V x, long n) {
  if (__builtin_expect(n < W, 0)) x = select(lanes(0) < (I)n, x, V{});
#if defined(__AVX512BF16__)
  typedef uint16_t halves __attribute__((vector_size(BYTES / 2)));
  halves h;
  asm("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(x));
#else
  typedef uint16_t halves __attribute__((vector_size(BYTES / 2)));
  const halves h = __builtin_convertvector(rounded(x) >> 16, halves);
#endif
  __builtin_memcpy(p, &h, sizeof h);
}

// A row in memory as it lies: n of N neighbours exist, the others are 0.
template <long N> INLINE void copy_halves(Pair* to, const bf16* from, long stride, long n) {
  if (__builtin_expect(stride == 1 && n == N && N % W == 0, 1)) { __builtin_memcpy(to, from, 2 * N); return; }
  bf16 row[padded(N)]{};
  for (long c = 0; c < n; ++c) row[c] = from[c * stride];
  __builtin_memcpy(to, row, sizeof row);
}

// Rows of numbers as rows of pairs: neighbours of a row ...
static void pair_rows(Pair* to, long to_ld, const T* from, long from_ld, long rows, long columns) {
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < columns; c += W) store_halves(to + r * to_ld + c / 2, load(from + r * from_ld + c), columns - c);
}
// ... or neighbours of a column, the last one beside 0.
static void pair_columns(Pair* to, long to_ld, const T* from, long from_ld, long rows, long columns) {
  for (long r = 0; r < rows; r += 2)
    for (long c = 0; c < columns; c += W) {
      const VP low = rounded(load(from + r * from_ld + c)) >> 16;
      store(to + r / 2 * to_ld + c, r + 1 < rows ? low | rounded(load(from + (r + 1) * from_ld + c)) : low);
    }
}
// From rows of pairs.
static void pair_columns(Pair* to, long to_ld, const Pair* from, long from_ld, long rows, long columns) {
  typedef uint16_t halves __attribute__((vector_size(2 * W)));
  for (long r = 0; r < rows; r += 2)
    for (long c = 0; c < columns; c += W) {
      halves x, y{};
      __builtin_memcpy(&x, from + r * from_ld + c / 2, sizeof x);
      if (r + 1 < rows) __builtin_memcpy(&y, from + (r + 1) * from_ld + c / 2, sizeof y);
      store(to + r / 2 * to_ld + c, __builtin_convertvector(x, VP) | __builtin_convertvector(y, VP) << 16);
    }
}

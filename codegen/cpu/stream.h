// Products with few rows on the left, whose right operand is read once and where it lies: making a copy would cost more than it saves.
// E is T with a right operand of T, or pairs with one of bf16. They are calls: inlined, they cost the code around them registers.

#define APART static __attribute__((noinline)) void

// Rows that are read after those at hand, asked for one by one into the second cache: what the machine reads ahead by itself ends with a
// page, and every page begins late.
struct Ahead {
  const char* at;
  long row, bytes;
  void ask(long r) const { for (long o = 0; o < bytes; o += 64) __builtin_prefetch(at + r * row + o, 0, 2); }
};
template <class B> INLINE Ahead ahead(const B* p, long row, long n) { return {(const char*)p, row * (long)sizeof(B), n * (long)sizeof(B)}; }

// Which terms exist: all of them, or those that a list of truth values names.
struct All { constexpr bool operator[](long) const { return true; } };

// Two vectors as one: a lane with bit S holds the sum of two lanes of b, the others of a.
template <int S> INLINE V merged(V a, V b) {
  const VI upper = (iota() & (I)S) != 0;
  return select(upper, b, a) + shuffled(select(upper, a, b), iota() ^ (I)S);
}
// Lane l: the sum of all lanes of x[l].
template <int S = W / 2> INLINE V sums_of(V* x) {
#pragma GCC unroll 8
  for (int l = 0; l < S; ++l) x[l] = merged<S>(x[l], x[l + S]);
  if constexpr (S > 1) return sums_of<S / 2>(x);
  return x[0];
}
INLINE const T* terms_of(const T* b, const T*) { return b; }
INLINE T term(const T* a, long r) { return a[r]; }
#ifdef EINFUSE_PAIRS
INLINE const Pair* terms_of(const bf16* b, const Pair*) { return (const Pair*)b; }
INLINE T term(const Pair* a, long r) { bf16 x; __builtin_memcpy(&x, (const char*)a + 2 * r, 2); return wide(x); }
#endif

// c[x][y] = acc[x][y] + sum over r of a[x][r] * b[y][r]; k counts elements E and fills whole vectors.
template <class E, class B>
APART dots(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const B* b, long b_ld, long m, long n, long k,
                 const Ahead& next) {
  for (long y = 0; y < n; y += W)
    for (long x = 0; x < m; ++x) {
      V lanes_sum[W];
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) {  // in the order of memory, which the machine reads ahead
        const E* const row = terms_of(b + minimum(y + l, n - 1) * b_ld, a);
        if (x == 0) next.ask(y + l);
        lanes_sum[l] = V{};
        for (long r = 0; r < k; r += W) lanes_sum[l] = fused(lanes_sum[l], load(a + x * a_x + r), load(row + r));
      }
      const V s = sums_of(lanes_sum);
      store(c + x * c_ld + y, acc ? s + load(acc + x * acc_ld + y) : s);
    }
}

// c[x][y] = acc[x][y] + sum over r of a[x][r] * b[r][y] for M rows and N vectors of neighbours, which stay in registers; k counts terms.
template <int M, int N, class E, class B, class A>
INLINE void weighted(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const B* b, long b_ld, long k, const Ahead& next,
                     A where) {
  V s[M][N] = {};
  for (long r = 0; r < k; ++r) {
    V row[N];
    next.ask(r);
    if (!where[r]) continue;
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) row[v] = neighbours(b + r * b_ld + v * W);
#pragma GCC unroll 8
    for (int x = 0; x < M; ++x) {
      const V w = spread(term(a + x * a_x, r));
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) s[x][v] += w * row[v];
    }
  }
#pragma GCC unroll 8
  for (int x = 0; x < M; ++x)
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) store(c + x * c_ld + v * W, acc ? s[x][v] + load(acc + x * acc_ld + v * W) : s[x][v]);
}
template <int M, class E, class B, class A>
static void across(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const B* b, long b_ld, long n, long k,
                   const Ahead& after, A where) {
  const auto from = [&](long y) { return acc ? acc + y : nullptr; };
  const auto next = [&](long y) { return y == 0 ? after : Ahead{}; };
  long y = 0;
  for (; y + COLUMNS * W <= n; y += COLUMNS * W)
    weighted<M, COLUMNS>(c + y, c_ld, from(y), acc_ld, a, a_x, b + y, b_ld, k, next(y), where);
  for (; y < n; y += W) weighted<M, 1>(c + y, c_ld, from(y), acc_ld, a, a_x, b + y, b_ld, k, next(y), where);
}
// The same for m rows and n columns, which fill whole vectors; rows of b that do not exist (see ``where``) are not read.
template <class E, class B, class A = All>
APART sums(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const B* b, long b_ld, long m, long n, long k,
                 const Ahead& after, A where = {}) {
  const auto from = [&](long x) { return acc ? acc + x * acc_ld : nullptr; };
  const auto next = [&](long x) { return x == 0 ? after : Ahead{}; };
  long x = 0;
  for (; x + 4 <= m; x += 4) across<4>(c + x * c_ld, c_ld, from(x), acc_ld, a + x * a_x, a_x, b, b_ld, n, k, next(x), where);
  for (; x < m; ++x) across<1>(c + x * c_ld, c_ld, from(x), acc_ld, a + x * a_x, a_x, b, b_ld, n, k, next(x), where);
}

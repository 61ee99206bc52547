// Products with few rows on the left, whose right operand is read once and where it lies: making a copy would cost more than it saves.
// E is T with a right operand of T, or pairs with one of bf16.

// Rows that are read after those at hand, asked for one by one into the second cache: what the machine reads ahead by itself ends with a
// page, and every page begins late.
struct Ahead {
  const char* at;
  long row, bytes;
  void ask(long r) const { for (long o = 0; o < bytes; o += 64) __builtin_prefetch(at + r * row + o, 0, 2); }
};
template <class B> INLINE Ahead ahead(const B* p, long row, long n) { return {(const char*)p, row * (long)sizeof(B), n * (long)sizeof(B)}; }

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
static void dots(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const B* b, long b_ld, long m, long n, long k,
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

// c[x][y] = acc[x][y] + sum over r of a[x][r] * b[r][y]; n fills whole vectors, k counts terms.
template <int N, class E, class B>
INLINE void weighted(T* c, const T* acc, const E* a, const B* b, long b_ld, long k, const Ahead& next) {
  V s[N] = {};
  for (long r = 0; r < k; ++r) {
    const V x = spread(term(a, r));
    next.ask(r);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) s[v] += x * neighbours(b + r * b_ld + v * W);
  }
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) store(c + v * W, acc ? s[v] + load(acc + v * W) : s[v]);
}
template <class E, class B>
static void sums(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const B* b, long b_ld, long m, long n, long k,
                 const Ahead& after) {
  for (long x = 0; x < m; ++x) {
    long y = 0;
    const auto next = [&] { return x == 0 && y == 0 ? after : Ahead{}; };
    const auto from = [&] { return acc ? acc + x * acc_ld + y : nullptr; };
    for (; y + 4 * W <= n; y += 4 * W) weighted<4>(c + x * c_ld + y, from(), a + x * a_x, b + y, b_ld, k, next());
    for (; y < n; y += W) weighted<1>(c + x * c_ld + y, from(), a + x * a_x, b + y, b_ld, k, next());
  }
}

// Products with few rows on the left, whose right operand is read once and where it lies: making a copy would cost more than it saves.
// E is T with a right operand of T, or pairs with one of bf16. They are calls: inlined, they cost the code around them registers.

#define APART static __attribute__((noinline)) void

// Rows of an operand where the caller holds it: evenly apart, or at places that were computed.
template <class B> struct Even {
  const B* p;
  long ld;
  const B* operator[](long r) const { return p + r * ld; }
  Even right(long columns) const { return {p + columns, ld}; }
};
template <class B> struct Listed {
  const B* p;
  const long* at;
  const B* operator[](long r) const { return p + at[r]; }
  Listed right(long columns) const { return {p + columns, at}; }
};
template <class B> INLINE Even<B> even(const B* p, long ld) { return {p, ld}; }
template <class B> INLINE Listed<B> listed(const B* p, const long* at) { return {p, at}; }

// The lists of a block and of the one behind it, which is asked for while this one is read.
struct Lists {
  long of[2] = {-1, -1};
  // Where the list of the block from ``from`` on begins; that of the next block begins at step minus that.
  template <class F> long need(long from, long step, long size, F list) {
    const int here = of[1] == from;
    make(here, from, step, size, list);
    if (from + step < size) make(!here, from + step, step, size, list);
    return here * step;
  }
  template <class F> void make(int half, long from, long step, long size, F list) {
    if (of[half] == from) return;
    list(from, minimum(step, size - from), half * step);
    of[half] = from;
  }
};

template <class B> INLINE void ask(const B* p, long n) {
  for (long o = 0; o < n * (long)sizeof(B); o += 64) __builtin_prefetch((const char*)p + o, 0, 2);
}
// Rows that are read after those at hand, asked for one by one into the second cache: what the machine reads ahead by itself ends with a
// page, and every page begins late.
template <class R> struct Ahead {
  R rows;
  long first, n;
  void operator()(long r) const { if (n) ask(rows[first + r], n); }
  Ahead only_if(bool wanted) const { return {rows, first, wanted ? n : 0}; }
};
template <class R> INLINE Ahead<R> ahead(R rows, long first, long n) { return {rows, first, n}; }

// Which terms exist: all of them, or those that a list of truth values names.
struct All { constexpr bool operator[](long) const { return true; } };

INLINE const T* terms_of(const T* b, const T*) { return b; }
INLINE T term(const T* a, long r) { return a[r]; }
#ifdef EINFUSE_PAIRS
INLINE const Pair* terms_of(const bf16* b, const Pair*) { return (const Pair*)b; }
INLINE T term(const Pair* a, long r) { bf16 x; __builtin_memcpy(&x, (const char*)a + 2 * r, 2); return wide(x); }
#endif

// c[x][y] = acc[x][y] + sum over r of a[x][r] * b[y][r]; k counts elements E and fills whole vectors.
template <class E, class R, class N>
APART dots(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const R b, long m, long n, long k, const N next) {
  for (long y = 0; y < n; y += W) {
    const E* rows[W];
    for (int l = 0; l < W; ++l) {
      rows[l] = terms_of(b[minimum(y + l, n - 1)], a);
      next(minimum(y + l, n - 1));
    }
    for (long x = 0; x < m; ++x) {
      V lanes_sum[W];
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) {  // in the order of memory, which the machine reads ahead
        lanes_sum[l] = V{};
        for (long r = 0; r < k; r += W) lanes_sum[l] = fused(lanes_sum[l], load(a + x * a_x + r), load(rows[l] + r));
      }
      const V s = gathered(lanes_sum, [](V p, V q) { return p + q; });
      store(c + x * c_ld + y, acc ? s + load(acc + x * acc_ld + y) : s);
    }
  }
}

// c[x][y] = acc[x][y] + sum over r of a[x][r] * b[r][y] for M rows and N vectors of neighbours, which stay in registers; k counts terms.
template <int M, int N, class E, class R, class X, class A>
INLINE void weighted(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const R b, long k, const X next, A where) {
  V s[M][N] = {};
  for (long r = 0; r < k; ++r) {
    V row[N];
    next(r);
    if (!where[r]) continue;
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) row[v] = neighbours(b[r] + v * W);
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
#if defined(EINFUSE_PAIRS) && defined(__AVX512BF16__)
// Neighbours of two rows as pairs: N vectors of W.
template <int N> INLINE void paired(VP* to, const bf16* x, const bf16* y) {
  static_assert(N % 2 == 0);
#pragma GCC unroll 8
  for (int v = 0; v < N; v += 2) {
    typedef uint16_t whole __attribute__((vector_size(BYTES)));
    whole a, b, low, high;
    __builtin_memcpy(&a, x + v * W, sizeof a);
    __builtin_memcpy(&b, y + v * W, sizeof b);
    for (int l = 0; l < 2 * W; ++l) low[l] = l / 2 + l % 2 * 2 * W, high[l] = low[l] + W;
    const whole first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
    __builtin_memcpy(to + v, &first, sizeof first);
    __builtin_memcpy(to + v + 1, &second, sizeof second);
  }
}
// The same, two terms by one instruction.
template <int M, int N, class R, class X, class A>
INLINE void weighted_pairs(T* c, long c_ld, const T* acc, long acc_ld, const Pair* a, long a_x, const R b, long k, const X next, A where) {
  V s[M][N] = {};
  alignas(64) static const bf16 none[N * W] = {};
  for (long r = 0; r < k; r += 2) {
    VP rows[N];
    const bool two = r + 1 < k;
    next(r);
    if (two) next(r + 1);
    const bool first = where[r], second = two && where[r + 1];
    if (!first && !second) continue;
    paired<N>(rows, first ? b[r] : none, second ? b[r + 1] : none);
#pragma GCC unroll 8
    for (int x = 0; x < M; ++x) {
      const VP w = spread(a[x * a_x + r / 2]);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) s[x][v] = fused(s[x][v], w, rows[v]);
    }
  }
#pragma GCC unroll 8
  for (int x = 0; x < M; ++x)
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) store(c + x * c_ld + v * W, acc ? s[x][v] + load(acc + x * acc_ld + v * W) : s[x][v]);
}
#endif
template <int M, class E, class R, class X, class A>
static void across(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const R b, long n, long k, const X after, A where) {
  const auto from = [&](long y) { return acc ? acc + y : nullptr; };
  const auto next = [&](long y) { return after.only_if(y == 0); };
  long y = 0;
  for (; y + COLUMNS * W <= n; y += COLUMNS * W)
#if defined(EINFUSE_PAIRS) && defined(__AVX512BF16__)
    if constexpr (sizeof(*b[0]) == 2) weighted_pairs<M, COLUMNS>(c + y, c_ld, from(y), acc_ld, a, a_x, b.right(y), k, next(y), where);
    else
#endif
      weighted<M, COLUMNS>(c + y, c_ld, from(y), acc_ld, a, a_x, b.right(y), k, next(y), where);
  for (; y < n; y += W) weighted<M, 1>(c + y, c_ld, from(y), acc_ld, a, a_x, b.right(y), k, next(y), where);
}
// The same for m rows and n columns, which fill whole vectors; rows of b that do not exist (see ``where``) are not read.
template <class E, class R, class X, class A = All>
APART sums(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, const R b, long m, long n, long k, const X after, A where = {}) {
  const auto from = [&](long x) { return acc ? acc + x * acc_ld : nullptr; };
  const auto next = [&](long x) { return after.only_if(x == 0); };
  long x = 0;
  for (; x + 4 <= m; x += 4) across<4>(c + x * c_ld, c_ld, from(x), acc_ld, a + x * a_x, a_x, b, n, k, next(x), where);
  for (; x < m; ++x) across<1>(c + x * c_ld, c_ld, from(x), acc_ld, a + x * a_x, a_x, b, n, k, next(x), where);
}

// Where a block of points under a mask is alive: products and loops of it skip what no point needs.

struct Ends { long first, last; };

// Strips of ROWS rows, each from its first to its last vector of columns with a point that is alive; and strips of ROWS columns, each
// from its first to its last strip of rows.
template <long M, long N> struct Alive {
  static constexpr long VECTORS = ceil_div(N, W);
  VI any[ceil_div(M, ROWS) * VECTORS];
  Ends rows[ceil_div(M, ROWS)], columns[ceil_div(N, ROWS)];

  void clear() { for (VI& x : any) x = VI{}; }
  void see(long x, long y, VI truth) { any[x / ROWS * VECTORS + y / W] |= truth; }
  // Of every column, whether any row of it is alive.
  void shade(I* to, long m, long n) const {
    for (long y = 0; y < n; y += W) {
      VI some{};
      for (long s = 0; s * ROWS < m; ++s) some |= any[s * VECTORS + y / W];
      store(to + y, some);
    }
  }
  // After every point was seen; ``everywhere``: as if all were alive.
  void find(long m, long n, bool everywhere) {
    for (long y = 0; y < n; y += ROWS) columns[y / ROWS] = {m, 0};
    for (long s = 0; s * ROWS < m; ++s) {
      Ends& row = rows[s] = {n, 0};
      for (long y = 0; y < n; y += W) {
        if (!everywhere && !some(any[s * VECTORS + y / W])) continue;
        row = {minimum(row.first, y), minimum(y + W, n)};
        for (long c = y / ROWS; c * ROWS < row.last; ++c) columns[c] = {minimum(columns[c].first, s * ROWS), minimum((s + 1) * ROWS, m)};
      }
    }
  }
};

// Whether all of n truth values hold.
static bool every(const I* x, long n) {
  VI none{};
  for (long r = 0; r < n; r += W) none |= ~load(x + r) & (VI)(lanes(r) < (I)n);
  return !some(none);
}
INLINE V existing(V row, const I* where, long r, long) { return where[r] ? row : V{}; }
#ifdef EINFUSE_PAIRS
INLINE VP existing(VP rows, const I* where, long r, long k) {
  return rows & ((where[2 * r] ? 0xffff : 0) | (2 * r + 1 < k && where[2 * r + 1] ? 0xffff0000 : 0));
}
#endif

// A right operand of k terms, PER to an element E, of which some may not exist: itself where all do, else a copy with 0 in their place.
template <class E> struct Rows { const E* p; long ld; };
template <int PER, class E> static Rows<E> existing(E* copy, long copy_ld, const E* b, long b_ld, long k, long n, const I* where) {
  if (every(where, k)) return {b, b_ld};
  for (long r = 0; r * PER < k; ++r)
    for (long y = 0; y < n; y += W) store(copy + r * copy_ld + y, existing(load(b + r * b_ld + y), where, r, k));
  return {copy, copy_ld};
}

// Zeros where nothing is alive.
template <class A> static void clear_outside(T* p, long ld, long m, long n, const A& alive) {
  for (long x = 0; x < m; ++x) {
    const Ends e = alive.rows[x / ROWS];
    for (long y = 0; y < n; y += W) if (y < e.first || y >= e.last) store(p + x * ld + y, V{});
  }
}

// As `matmul`: only the columns of a strip of rows that are alive are written.
template <class E>
static void matmul_columns(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, long a_r, const E* b, long b_ld, long m, long k,
                           const Ends* ends) {
  for (long x = 0; x < m; x += ROWS, ++ends) {
    const long y = ends->first;
    if (y < ends->last)
      strips(ceil_div(ends->last - y, W), minimum((long)ROWS, m - x), c + x * c_ld + y, c_ld, acc ? acc + x * acc_ld + y : acc, acc_ld,
             a + x * a_x, a_x, a_r, b + y, b_ld, k);
  }
}
// As `matmul`: of the terms of a strip of rows only those that are alive, PER to an element E; the others are 0.
template <int PER, class E>
static void matmul_terms(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, long a_r, const E* b, long b_ld, long m, long n,
                         const Ends* ends) {
  for (long x = 0; x < m; x += ROWS, ++ends) {
    const bool none = ends->first >= ends->last;
    if (none && acc == c) continue;
    const long r = none ? 0 : ends->first / PER, k = none ? 0 : ceil_div(ends->last, PER) - r;
    strips(ceil_div(n, W), minimum((long)ROWS, m - x), c + x * c_ld, c_ld, acc ? acc + x * acc_ld : acc, acc_ld, a + x * a_x + r * a_r, a_x,
           a_r, b + r * b_ld, b_ld, k);
  }
}

// c[x][y] = acc[x][y] + sum over r of a[x][r] * b[r][y]: register tiles of ROWS x COLUMNS vectors, b row-major, a with any strides.
// Rows of b and c are padded to whole vectors. E is T, or pairs of narrower terms.

INLINE V fused(V acc, V x, V y) { return acc + x * y; }

template <int M, int N, class E>
static void tile(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, long a_r, const E* b, long b_ld, long k) {
  V s[M][N] = {};
  for (long r = 0; r < k; ++r) {
    decltype(load(b)) y[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) y[n] = load(b + r * b_ld + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const auto x = spread(a[m * a_x + r * a_r]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) s[m][n] = fused(s[m][n], x, y[n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(c + m * c_ld + n * W, acc ? s[m][n] + load(acc + m * acc_ld + n * W) : s[m][n]);
}

template <int N, int M = ROWS, class E>
INLINE void strip(long rows, T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, long a_r, const E* b, long b_ld, long k) {
  if constexpr (M == ROWS) {
    for (; rows >= ROWS; rows -= ROWS) {
      tile<ROWS, N>(c, c_ld, acc, acc_ld, a, a_x, a_r, b, b_ld, k);
      c += ROWS * c_ld, a += ROWS * a_x;
      if (acc) acc += ROWS * acc_ld;
    }
  } else if (rows == M) {
    tile<M, N>(c, c_ld, acc, acc_ld, a, a_x, a_r, b, b_ld, k);
    return;
  }
  if constexpr (M > 1) strip<N, M - 1>(rows, c, c_ld, acc, acc_ld, a, a_x, a_r, b, b_ld, k);
}

template <int N = COLUMNS, class E>
INLINE void strips(long vectors, long rows, T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, long a_r, const E* b,
                   long b_ld, long k) {
  for (; vectors >= N; vectors -= N) {
    strip<N>(rows, c, c_ld, acc, acc_ld, a, a_x, a_r, b, b_ld, k);
    c += N * W, b += N * W;
    if (acc) acc += N * W;
  }
  if constexpr (N > 1) strips<N - 1>(vectors, rows, c, c_ld, acc, acc_ld, a, a_x, a_r, b, b_ld, k);
}

// m x n products of k terms; acc may be c itself, or null for a fresh product.
template <class E>
static void matmul(T* c, long c_ld, const T* acc, long acc_ld, const E* a, long a_x, long a_r, const E* b, long b_ld, long m, long n,
                   long k) {
  strips(ceil_div(n, W), m, c, c_ld, acc, acc_ld, a, a_x, a_r, b, b_ld, k);
}

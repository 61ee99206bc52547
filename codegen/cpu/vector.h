// Vectors of the compiler's own (no intrinsics): V of the accumulation type T, VI of integers and truth values as wide as T.
// A truth value is 0 or -1 in every lane. Lanes of padding hold anything; nothing that mixes lanes may read them.

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 6, COLUMNS = 4;  // 24 accumulators of 32 registers
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6, COLUMNS = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr int BYTES = 16, ROWS = 6, COLUMNS = 4;  // 24 of 32
#else
constexpr int BYTES = 16, ROWS = 6, COLUMNS = 2;
#endif
typedef T V __attribute__((vector_size(BYTES)));
typedef I VI __attribute__((vector_size(BYTES)));
constexpr long W = BYTES / sizeof(T);

constexpr long padded(long n) { return (n + W - 1) / W * W; }
constexpr long ceil_div(long n, long by) { return (n + by - 1) / by; }

#define INLINE static inline __attribute__((always_inline))
#pragma GCC diagnostic ignored "-Wpsabi"

INLINE V load(const T* p) { V x; __builtin_memcpy(&x, p, sizeof x); return x; }
INLINE VI load(const I* p) { VI x; __builtin_memcpy(&x, p, sizeof x); return x; }
INLINE void store(T* p, V x) { __builtin_memcpy(p, &x, sizeof x); }
INLINE void store(I* p, VI x) { __builtin_memcpy(p, &x, sizeof x); }

INLINE V spread(T x) { return x - V{}; }
INLINE VI spread(long x) { return (I)x - VI{}; }
INLINE VI spread(bool x) { return -(I)x - VI{}; }

INLINE VI iota() { VI x; for (int l = 0; l < W; ++l) x[l] = l; return x; }
INLINE VI lanes(long from) { return iota() + (I)from; }

INLINE V select(VI c, V a, V b) { return c ? a : b; }
INLINE VI select(VI c, VI a, VI b) { return c ? a : b; }
template <class X> INLINE X select(bool c, X a, X b) { return c ? a : b; }

INLINE V real(VI x) { return __builtin_convertvector(x, V); }
INLINE T real(long x) { return (T)x; }
INLINE V truth_real(VI x) { return real(-x); }
INLINE VI whole(V x) { return __builtin_convertvector(x, VI); }
INLINE long whole(T x) { return (long)x; }
INLINE V bits_real(VI x) { V y; __builtin_memcpy(&y, &x, sizeof y); return y; }
INLINE VI bits_int(V x) { VI y; __builtin_memcpy(&y, &x, sizeof y); return y; }

// a * b + c, rounded once where the machine can. Hiding where a comes from keeps the product from being shared with other readers,
// for whom the compiler would round it.
#if defined(__AVX__)
#define HIDDEN(x) asm("" : "+v"(x))
#elif defined(__aarch64__)
#define HIDDEN(x) asm("" : "+w"(x))
#else
#define HIDDEN(x)
#endif
INLINE V multiply_add(V a, V b, V c) { HIDDEN(a); return a * b + c; }
INLINE V as_rounded(V x) { HIDDEN(x); return x; }  // a product that no sum may take in

INLINE V maximum(V a, V b) { return a > b ? a : b; }
INLINE VI maximum(VI a, VI b) { return a > b ? a : b; }
INLINE T maximum(T a, T b) { return a > b ? a : b; }
INLINE long maximum(long a, long b) { return a > b ? a : b; }
INLINE V minimum(V a, V b) { return a < b ? a : b; }
INLINE VI minimum(VI a, VI b) { return a < b ? a : b; }
INLINE T minimum(T a, T b) { return a < b ? a : b; }
INLINE long minimum(long a, long b) { return a < b ? a : b; }
INLINE V absolute(V x) { return bits_real(bits_int(x) & (VI)(~((VI{} + 1) << (8 * sizeof(T) - 1)))); }
INLINE T absolute(T x) { return x < 0 ? -x : x; }
INLINE VI absolute(VI x) { return x < 0 ? -x : x; }
INLINE long absolute(long x) { return x < 0 ? -x : x; }
INLINE VI sign(VI x) { return (x < 0) - (x > 0); }
INLINE V sign(V x) { return real((VI)(x < 0) - (VI)(x > 0)); }
INLINE long sign(long x) { return (x > 0) - (x < 0); }
INLINE T sign(T x) { return (T)((x > 0) - (x < 0)); }

// Division that rounds down, and what it leaves. A divisor of 0 stands only in padding or where a select discards it.
INLINE long floor_div(long a, long b) { b += b == 0; long q = a / b; return q - ((a % b != 0) & ((a < 0) != (b < 0))); }
INLINE long floor_mod(long a, long b) { return a - floor_div(a, b) * b; }
INLINE VI floor_div(VI a, VI b) {
  if constexpr (sizeof(I) == 4) {  // exact in double: 32-bit quotients have 53 bits to round in
    VI q;
    for (int l = 0; l < W; ++l) q[l] = (I)__builtin_floor((double)a[l] / (double)(b[l] == 0 ? 1 : b[l]));
    return q;
  }
  VI q;
  for (int l = 0; l < W; ++l) q[l] = floor_div((long)a[l], (long)b[l]);
  return q;
}
INLINE VI floor_mod(VI a, VI b) { return a - floor_div(a, b) * b; }

template <class X> INLINE X shuffled(X x, VI from) {
#if defined(__clang__)
  X y;
  for (int l = 0; l < W; ++l) y[l] = x[from[l]];
  return y;
#else
  return __builtin_shuffle(x, from);
#endif
}
// Lanes of two vectors, those of b from W on.
template <class X> INLINE X shuffled(X a, X b, VI from) {
#if defined(__clang__)
  X y;
  for (int l = 0; l < W; ++l) y[l] = from[l] < W ? a[from[l]] : b[from[l] - W];
  return y;
#else
  return __builtin_shuffle(a, b, from);
#endif
}
template <int STEP, class X> INLINE X rotated(X x) { return shuffled(x, (iota() + STEP) % (I)W); }
constexpr int GRAIN = 16 / sizeof(T) < W ? 16 / sizeof(T) : W;  // lanes of 16 bytes: machines move lanes within these, or all of these
// f over all lanes, in every lane: within grains first.
template <int STEP = GRAIN / 2, class X, class F> INLINE X folded(X x, F f) {
  if constexpr (STEP < 1) return folded<GRAIN>(x, f);
  else if constexpr (STEP == W) return x;
  else return folded<(STEP < GRAIN ? (STEP == 1 ? GRAIN : STEP / 2) : 2 * STEP)>(f(x, rotated<STEP>(x)), f);
}
// Two vectors as one, where a vector holds of S vectors what is left of their lanes: of those of a and b half as many of each.
template <int S, class F> INLINE V merged(V a, V b, F f) {
  VI low, high;
  for (int l = 0; l < W; ++l) {
    const int within = l % GRAIN, grain = l / GRAIN, half = W / GRAIN / 2;
    if (S < GRAIN) {
      low[l] = within / S % 2 * W + grain * GRAIN + within / S / 2 * S + within % S;
      high[l] = low[l] + GRAIN / 2;
    } else {
      low[l] = grain / half * W + grain % half * 2 * GRAIN + within;
      high[l] = low[l] + GRAIN;
    }
  }
  return f(shuffled(a, b, low), shuffled(a, b, high));
}
// Lane l: f over all lanes of x[l], as `folded`.
template <int S = 1, class F> INLINE V gathered(V* x, F f) {
  if constexpr (S == W) return x[0];
  else {
#pragma GCC unroll 8
    for (int l = 0; l < W / S / 2; ++l) x[l] = merged<S>(x[2 * l], x[2 * l + 1], f);
    return gathered<2 * S>(x, f);
  }
}
// The same of n vectors in memory, to one place for each.
template <class F> INLINE void fold_rows(T* to, const T* rows, long n, F f) {
  long r = 0;
  for (; r + W / 4 < n; r += W) {
    V x[W];
    for (int l = 0; l < W; ++l) x[l] = load(rows + (r + l) * W);
    store(to + r, gathered(x, f));
  }
  for (; r < n; ++r) to[r] = folded(load(rows + r * W), f)[0];
}
INLINE T sum_of(V x) { return folded(x, [](V a, V b) { return a + b; })[0]; }
INLINE long sum_of(VI x) { return folded(x, [](VI a, VI b) { return a + b; })[0]; }
INLINE T prod_of(V x) { return folded(x, [](V a, V b) { return a * b; })[0]; }
INLINE long prod_of(VI x) { return folded(x, [](VI a, VI b) { return a * b; })[0]; }
INLINE T max_of(V x) { return folded(x, [](V a, V b) { return maximum(a, b); })[0]; }
INLINE long max_of(VI x) { return folded(x, [](VI a, VI b) { return maximum(a, b); })[0]; }
INLINE T min_of(V x) { return folded(x, [](V a, V b) { return minimum(a, b); })[0]; }
INLINE long min_of(VI x) { return folded(x, [](VI a, VI b) { return minimum(a, b); })[0]; }
INLINE bool any_of(VI x) { return folded(x, [](VI a, VI b) { return a | b; })[0] != 0; }
#if defined(__AVX512F__) && !defined(__clang__)
INLINE bool some(VI x) {
  typedef int word __attribute__((vector_size(64)));
  return __builtin_ia32_ptestmd512((word)x, (word)x, 0xffff) != 0;
}
#else
INLINE bool some(VI x) { return any_of(x); }
#endif

#if defined(__OPTIMIZE__) && (defined(__FMA__) || defined(__aarch64__))  // as the compiler contracts vectors
INLINE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INLINE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
INLINE T multiply_add(T a, T b, T c) { return a * b + c; }
#endif

// acc plus the products of the lanes that are among the first N of the block, one after the other: the order of a matrix product.
template <long N> INLINE T in_order(T acc, V a, V b, long at) {
  for (long l = 0; l < (at + W <= N ? W : N - at); ++l) acc = multiply_add((T)a[l], (T)b[l], acc);
  return acc;
}

// x where the lane is one of the first N of the block, else the identity of the reduction that follows.
template <long N, class X> INLINE X within(X x, long at, X identity) {
  if constexpr (N % W == 0) return x;
  return at + W <= N ? x : select(lanes(at) < (I)N, x, identity);
}
template <class X> INLINE X below(X x, long at, long n, X identity) { return at + W <= n ? x : select(lanes(at) < (I)n, x, identity); }

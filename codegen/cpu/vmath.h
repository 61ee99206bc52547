// Elementary functions of vectors. Largest errors against float64, in units in the last place of float (T = float):
//   exp 0.9  exp2 0.9  log 0.8  log2 1.4  log1p 1.5  tanh 1.3 (1.8 without AVX-512)  sigmoid 1.5  softplus 2.0  rsqrt 1.5  erf 1.1  sin, cos 0.9
//   powers 1.1 (sines and cosines of more than 300,000 are the C library's, lane by lane)
// Infinities, NaN and signed zeros as in the C library; results below the normal range may be off by one subnormal unit.
// With T = double every function is the C library's, lane by lane.

// The C library's functions for float and double, without its header: that alone takes longer to read than the kernel to compile.
#define C_FUNCTION(name) \
  INLINE float c_##name(float x) { return __builtin_##name##f(x); } \
  INLINE double c_##name(double x) { return __builtin_##name(x); }
C_FUNCTION(sqrt) C_FUNCTION(erf) C_FUNCTION(sin) C_FUNCTION(cos) C_FUNCTION(floor) C_FUNCTION(exp) C_FUNCTION(exp2)
C_FUNCTION(log) C_FUNCTION(log2) C_FUNCTION(log1p) C_FUNCTION(tanh) C_FUNCTION(fabs)
INLINE float c_pow(float x, float y) { return __builtin_powf(x, y); }
INLINE double c_pow(double x, double y) { return __builtin_pow(x, y); }

template <class F> INLINE V each(V x, F f) {
  T in[W], out[W];
  __builtin_memcpy(in, &x, sizeof x);
  for (int l = 0; l < W; ++l) out[l] = f(in[l]);
  V y;
  __builtin_memcpy(&y, out, sizeof y);
  return y;
}
INLINE V square_root(V x) { return each(x, [](T v) { return c_sqrt(v); }); }
INLINE V reciprocal_root(V x) { return 1 / square_root(x); }
INLINE VI floor_whole(V x) { V t = real(whole(x)); return whole((V)(t > x ? t - 1 : t)); }
INLINE long floor_whole(T x) { return (long)c_floor(x); }

INLINE VI hashed(VI key, VI counter) {
  VI y;
  for (int l = 0; l < W; ++l) y[l] = (I)hashed((long)key[l], (long)counter[l]);
  return y;
}

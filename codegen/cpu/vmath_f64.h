// In double every elementary function is the C library's, lane by lane: for checks of gradients, not for speed.

INLINE V exponential(V x) { return each(x, [](T v) { return c_exp(v); }); }
INLINE V exponential2(V x) { return each(x, [](T v) { return c_exp2(v); }); }
INLINE V logarithm(V x) { return each(x, [](T v) { return c_log(v); }); }
INLINE V logarithm2(V x) { return each(x, [](T v) { return c_log2(v); }); }
INLINE V logarithm1p(V x) { return each(x, [](T v) { return c_log1p(v); }); }
INLINE V hyperbolic_tangent(V x) { return each(x, [](T v) { return c_tanh(v); }); }
INLINE V logistic(V x) {
  return each(x, [](T v) { T e = c_exp(-c_fabs(v)); return (v >= 0 ? 1 : e) / (1 + e); });
}
INLINE V soft_plus(V x) { return each(x, [](T v) { return (v > 0 ? v : v <= 0 ? 0 : v) + c_log1p(c_exp(-c_fabs(v))); }); }
INLINE V error_function(V x) { return each(x, [](T v) { return c_erf(v); }); }
INLINE V sine(V x) { return each(x, [](T v) { return c_sin(v); }); }
INLINE V cosine(V x) { return each(x, [](T v) { return c_cos(v); }); }
INLINE V power(V x, V y) { V z; for (int l = 0; l < W; ++l) z[l] = c_pow(x[l], y[l]); return z; }

// In double every elementary function is the C library's, lane by lane: for checks of gradients, not for speed.

INLINE V exponential(V x) { return each(x, [](T v) { return std::exp(v); }); }
INLINE V exponential2(V x) { return each(x, [](T v) { return std::exp2(v); }); }
INLINE V logarithm(V x) { return each(x, [](T v) { return std::log(v); }); }
INLINE V logarithm2(V x) { return each(x, [](T v) { return std::log2(v); }); }
INLINE V logarithm1p(V x) { return each(x, [](T v) { return std::log1p(v); }); }
INLINE V hyperbolic_tangent(V x) { return each(x, [](T v) { return std::tanh(v); }); }
INLINE V logistic(V x) {
  return each(x, [](T v) { T e = std::exp(-std::fabs(v)); return (v >= 0 ? 1 : e) / (1 + e); });
}
INLINE V soft_plus(V x) { return each(x, [](T v) { return (v > 0 ? v : v <= 0 ? 0 : v) + std::log1p(std::exp(-std::fabs(v))); }); }

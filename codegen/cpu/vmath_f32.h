// Single precision. Reductions and polynomials after Cody and Waite and the Cephes library (S. Moshier).

// x * 2^n for whole n of any size: in two steps, so that a result below the normal range is rounded once.
INLINE V times_power(V x, V n) {
#if defined(__AVX512F__)
  return (V)__builtin_ia32_scalefps512_mask(x, n, V{}, -1, 4);
#else
  VI e = whole(n), half = e >> 1;
  return x * bits_real((half + 127) << 23) * bits_real((e - half + 127) << 23);
#endif
}
INLINE V nearest(V x) {  // |x| < 2^22
#if defined(__AVX512F__) && !defined(__clang__)
  return (V)__builtin_ia32_rndscaleps_mask(x, 0, V{}, -1, 4);
#else
  const V big = spread(12582912.f);  // 1.5 * 2^23
  return (x + big) - big;
#endif
}

// x, but at least lo or at most hi; NaN stays. The C++ condition costs two instructions where the machine has one.
INLINE V at_least(T lo, V x) {
#if defined(__AVX512F__) && !defined(__clang__)
  return (V)__builtin_ia32_maxps512_mask(spread(lo), x, V{}, -1, 4);
#else
  return x < lo ? spread(lo) : x;
#endif
}
INLINE V at_most(T hi, V x) {
#if defined(__AVX512F__) && !defined(__clang__)
  return (V)__builtin_ia32_minps512_mask(spread(hi), x, V{}, -1, 4);
#else
  return x > hi ? spread(hi) : x;
#endif
}

// (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2: of this degree the one that gives e^r the smallest largest relative error (3.1e-9).
INLINE V exponential_rest(V r) {
  V p = spread(1.381432e-3f);
  p = p * r + 8.368851e-3f;
  p = p * r + 4.16684e-2f;
  p = p * r + 1.6666520e-1f;
  return p * r + 4.9999994e-1f;
}
INLINE V exponential_core(V r) { return (exponential_rest(r) * r + 1.f) * r + 1.f; }  // e^r
INLINE V exponential_tail(V r) { return exponential_rest(r) * (r * r) + r; }  // e^r - 1
INLINE V exponential(V x) {
  x = at_most(89.f, at_least(-104.f, x));  // 0 below, inf above
  const V n = nearest(x * 1.44269504088896341f);
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  return times_power(exponential_core(r), n);
}
INLINE V exponential2(V x) {
  x = at_most(129.f, at_least(-151.f, x));
  const V n = nearest(x);
  return times_power(exponential_core((x - n) * 0.693147180559945309f), n);
}

// top / (u + lost) for 1 <= u < 2^64, rounded nearly once: with what the sum u before it, the reciprocal and the product lose.
INLINE V quotient(V top, V u, V lost) {
  const V over = 1.f / u, y = top * over;
  return y + ((top - y * u) - y * lost) * over;
}

// x = m * 2^n with m in [sqrt(1/2), sqrt(2)), for positive finite x; then log(m) = r - r^2/2 + r^3 p(r), r = m - 1
struct Split { V r, tail, n; };
INLINE Split logarithm_split(V x) {
  const VI tiny = x < 1.17549435e-38f;
  const VI b = bits_int(select(tiny, x * 8388608.f, x));
  const VI shifted = b - 0x3f3504f3;
  V n = real(shifted >> 23) - select(tiny, spread(23.f), V{});
  const V r = bits_real((shifted & 0x7fffff) + 0x3f3504f3) - 1.f;
  V p = spread(7.0376836292e-2f);
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  return {r, p * r * (r * r), n};
}
INLINE V logarithm_ends(V x, V y) {  // what the split cannot say: 0, inf, negative numbers and NaN
  const V inf = spread(__builtin_inff());
  y = select(x == 0.f, -inf, y);
  y = select(x == inf, inf, y);
  return select(x >= 0.f, y, spread(__builtin_nanf("")));
}
INLINE V logarithm(V x) {
  const Split s = logarithm_split(x);
  V y = s.tail - s.n * 2.12194440e-4f;
  y = y - 0.5f * (s.r * s.r);
  return logarithm_ends(x, (s.r + y) + s.n * 0.693359375f);
}
INLINE V logarithm2(V x) {
  const Split s = logarithm_split(x);
  const V y = s.tail - 0.5f * (s.r * s.r);  // log2(e) = 1 + 0.442695...
  return logarithm_ends(x, ((y * 0.44269504088896341f + s.r * 0.44269504088896341f) + y + s.r) + s.n);
}
// What the rounding of 1 + x lost comes back as the first term of its series.
INLINE V logarithm1p(V x) {
  const V u = 1.f + x, y = logarithm(u), lost = (x - (u - 1.f)) / u;
  return select((VI)(u == 0.f) | (VI)(x == __builtin_inff()), y, y + lost);
}
// e / (e + 2) with e = exp(2 |x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which keeps the digits of small x; there -x is taken
// instead, because e + 2 is rounded finer below 2.
INLINE V hyperbolic_tangent(V x) {
  const V twice = absolute(x) * 2.f, a = select(twice < 1.f, -twice, at_most(20.f, twice));
  const V n = nearest(a * 1.44269504088896341f);
  const V r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  const V scale = times_power(spread(1.f), n);
  const V e = exponential_tail(r) * scale + (scale - 1.f);
  const V u = e + 2.f, y = absolute(quotient(e, u, e - (u - 2.f)));
  const VI sign_bit = VI{} + (I)0x80000000;
  return bits_real(bits_int(y) | (bits_int(x) & sign_bit));
}
INLINE V logistic(V x) {
  const V e = exponential(-absolute(x)), top = select(x >= 0.f, spread(1.f), e);
  const V u = 1.f + e;
  return quotient(top, u, e - (u - 1.f));
}
// log1p(e) for e in [0, 1] needs none of the corrections for special operands.
INLINE V soft_plus(V x) {
  const V e = exponential(-absolute(x)), u = 1.f + e, d = u - 1.f;
  const Split s = logarithm_split(u);
  V y = s.tail - s.n * 2.12194440e-4f;
  y = (s.r + (y - 0.5f * (s.r * s.r))) + s.n * 0.693359375f;
  y = select(d == 0.f, e, y + (e - d) / u);  // the first term of what 1 + e lost
  return select(x > 0.f, x, x <= 0.f ? V{} : x) + y;
}

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
#if defined(__AVX512DQ__)
// 2^(x - floor(x)) * 2^floor(x). What takes the floor off gives 0 for an infinite x, and what scales by a power takes the floor itself:
// nothing has to be cut off. The polynomial is the one of its degree with the smallest largest relative error (2.1e-9) on [0, 1).
INLINE V exponential2(V x) {
  V r;
  asm("vreduceps $1, %1, %0" : "=v"(r) : "v"(x));
  V p = spread(2.15659718e-4f);
  p = p * r + 1.24822895e-3f;
  p = p * r + 9.67377517e-3f;
  p = p * r + 5.54861836e-2f;
  p = p * r + 2.40229085e-1f;
  p = p * r + 6.93147063e-1f;
  return times_power(p * r + 1.f, x);
}
#else
INLINE V exponential2(V x) {
  x = at_most(129.f, at_least(-151.f, x));
  const V n = nearest(x);
  return times_power(exponential_core((x - n) * 0.693147180559945309f), n);
}
#endif

// top / (u + lost) for 1 <= u < 2^64, rounded nearly once: with what the sum u before it, the reciprocal and the product lose.
INLINE V quotient(V top, V u, V lost) {
  const V over = 1.f / u, y = top * over;
  return y + ((top - y * u) - y * lost) * over;
}

// x = m * 2^n with m in [sqrt(1/2), sqrt(2)), for positive finite x
struct Parted { V m, n; };
INLINE Parted parted(V x) {
  const VI tiny = x < 1.17549435e-38f;
  const VI shifted = bits_int(select(tiny, x * 8388608.f, x)) - 0x3f3504f3;
  return {bits_real((shifted & 0x7fffff) + 0x3f3504f3), real(shifted >> 23) - select(tiny, spread(23.f), V{})};
}
// log(m) = r - r^2/2 + r^3 p(r), r = m - 1
struct Split { V r, tail, n; };
INLINE Split logarithm_split(V x) {
  const Parted parts = parted(x);
  const V r = parts.m - 1.f;
  V p = spread(7.0376836292e-2f);
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  return {r, p * r * (r * r), parts.n};
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
INLINE V signed_as(V magnitude, V x) { return bits_real(bits_int(magnitude) | (bits_int(x) & (VI{} + (I)0x80000000))); }
#if defined(__AVX512F__)
// A polynomial of degree 7 around the nearest of 16 points, n * 149 / 256: its coefficients are chosen lane by lane. The first is
// tanh itself there, so that the sum is rounded as the result is; a number that reaches beyond the last point gives 1.
constexpr T TANH[8][W] = {
    {0.f, 0.524140239f, 0.822359443f, 0.940929294f, 0.981174827f, 0.994084179f, 0.998149216f, 0.999421775f, 0.999819458f, 0.999943614f, 0.999982417f, 0.999994516f, 0.999998271f, 0.999999464f, 0.999999821f, 0.99999994f},
    {1.f, 0.725277066f, 0.323725015f, 0.114652008f, 0.0372959711f, 0.0117966142f, 0.00369811407f, 0.00115607865f, 0.000361088954f, 0.00011275147f, 3.52040915e-05f, 1.09913863e-05f, 3.43169108e-06f, 1.0714275e-06f, 3.34516102e-07f, 1.04441035e-07f},
    {-1.07091154e-07f, -0.380151421f, -0.266224325f, -0.107873522f, -0.0365950726f, -0.0117236646f, -0.00368831842f, -0.00115159771f, -0.000364871579f, -0.000110923691f, -3.91603244e-05f, -1.35299078e-05f, -7.65649816e-07f, -9.18473802e-07f, 2.09370614e-06f, 1.44717774e-06f},
    {-0.333326429f, -0.0425165296f, 0.111015856f, 0.0632903576f, 0.0234729461f, 0.00772528583f, 0.00245175022f, 0.000769389444f, 0.000240594993f, 7.51553089e-05f, 2.34680756e-05f, 7.32747276e-06f, 2.287798e-06f, 7.14284624e-07f, 2.23011568e-07f, 6.96273688e-08f},
    {-0.000146964492f, 0.149139777f, -0.00235644542f, -0.0237811264f, -0.010795868f, -0.00386989396f, -0.00130942382f, -0.000503528805f, 6.48453124e-07f, -9.47754306e-05f, 0.000112546149f, 7.60696275e-05f, -8.48800773e-05f, -5.16115733e-06f, -7.63783828e-05f, -4.8768874e-05f},
    {0.134743467f, -0.0475152023f, -0.027638495f, 0.00362643902f, 0.00363553385f, 0.00143421208f, 0.000478982052f, 0.000152616005f, 4.80418203e-05f, 1.5010477e-05f, 4.69573661e-06f, 1.46563184e-06f, 4.57111014e-07f, 1.42834082e-07f, 4.45720865e-08f, 1.39226071e-08f},
    {-0.00651613111f, -0.0342366435f, 0.0158810541f, 0.00361420703f, -0.00104924326f, 0.000348864734f, 0.000572508608f, 0.000890525174f, -0.000966312888f, 0.000444739213f, -0.000978706405f, -0.000627385045f, 0.000658211822f, 3.77230172e-05f, 0.000599623949f, 0.000383160863f},
    {-0.0413862392f, 0.0274244305f, -0.00382793858f, -0.00180996594f, -3.68827932e-05f, 0.000105138104f, 4.52299028e-05f, 1.56524584e-05f, 4.31364288e-06f, 1.51017878e-06f, 4.22253152e-07f, 1.37275151e-07f, 4.70248303e-08f, 1.38338923e-08f, 4.50499194e-09f, 1.36222755e-09f}};
INLINE V hyperbolic_tangent(V x) {
  const V a = at_most(9.02f, absolute(x));
  const V big = a * (256.f / 149.f) + 12582912.f;  // the low bits of 1.5 * 2^23 + n are those of n
  const V t = a - (big - 12582912.f) * (149.f / 256.f);
  const VI n = bits_int(big) & (I)15;
  V p = shuffled(load(TANH[7]), n);
#pragma GCC unroll 8
  for (int k = 6; k >= 0; --k) p = p * t + shuffled(load(TANH[k]), n);
  return signed_as(p, x);
}
#else
// e / (e + 2) with e = exp(2 |x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which keeps the digits of small x; there -x is taken
// instead, because e + 2 is rounded finer below 2.
INLINE V hyperbolic_tangent(V x) {
  const V twice = absolute(x) * 2.f, a = select(twice < 1.f, -twice, at_most(20.f, twice));
  const V n = nearest(a * 1.44269504088896341f);
  const V r = (a - n * 0.693359375f) + n * 2.12194440e-4f;
  const V scale = times_power(spread(1.f), n);
  const V e = exponential_tail(r) * scale + (scale - 1.f);
  const V u = e + 2.f, y = absolute(quotient(e, u, e - (u - 2.f)));
  return signed_as(y, x);
}
#endif
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

// Below 1 an odd polynomial, above 1 - 2^-q(x): q is nearly a square and smooth. Both have the smallest largest error of their degrees.
INLINE V error_function(V x) {
  const V a = at_most(4.f, absolute(x)), s = a * a;
  V p = spread(7.85385419e-5f), q = spread(-2.68888427e-4f);
  p = p * s - 8.01019138e-4f;
  p = p * s + 5.18832728e-3f;
  p = p * s - 2.68538110e-2f;
  p = p * s + 1.12835854e-1f;
  p = p * s - 3.76126260e-1f;
  p = p * s + 1.28379166e-1f;
  q = q * a + 4.25257301e-3f;
  q = q * a - 3.15056704e-2f;
  q = q * a + 1.48751616e-1f;
  q = q * a + 9.20648396e-1f;
  q = q * a + 1.62604594f;
  q = q * a + 4.92712541e-4f;
  return signed_as(select((VI)(a < 1.f), p * a + a, 1.f - exponential2(-q)), x);
}

// sin(x + QUARTER pi / 2). The quarters are taken off in three steps; the first is exact, for x and a multiple of its constant end at the
// same bit. The polynomials are those of their degrees with the smallest largest relative errors (3.8e-9, 1.2e-10) up to pi / 4.
template <int QUARTER> INLINE V sine_from(V given) {
  const auto library = [](T v) { return QUARTER ? c_cos(v) : c_sin(v); };
#if defined(__FMA__) || defined(__aarch64__)
  const VI large = ~(VI)(absolute(given) <= 3e5f);
  const V x = select(large, V{}, given);  // a lane does not say what the others are computed by
  const V n = nearest(x * 0.636619772f);
  const V most = x - n * 1.57079637f, more = as_rounded(n * 4.37113883e-8f);
  const V r = select((VI)(n == 0.f), x, most + more), part = r - most;  // -0 stays
  const V lost = (most - (r - part)) + (more - part) + (multiply_add(n, spread(4.37113883e-8f), -more) + n * 1.71512451e-15f);
  const VI q = whole(n) + (I)QUARTER;
  const V s = r * r;
  V c = spread(2.44331180e-5f), d = spread(-1.95152496e-4f);
  c = c * s - 1.38873159e-3f;
  c = c * s + 4.16666457e-2f;
  const V top = 1.f - 0.5f * s;
  c = top + (((1.f - top) - 0.5f * s) + (c * (s * s) - r * lost));
  d = d * s + 8.33216052e-3f;
  d = d * s - 1.66666546e-1f;
  d = r + (d * (r * s) + lost * top);
  const V y = select((VI)((q & 1) != 0), c, d);
  const V found = bits_real(bits_int(y) ^ ((q & 2) << 30));
  return __builtin_expect(!some(large), 1) ? found : select(large, each(given, library), found);
#else
  return each(given, library);
#endif
}
INLINE V sine(V x) { return sine_from<0>(x); }
INLINE V cosine(V x) { return sine_from<1>(x); }

// x^y = 2^(y log2 |x|): the logarithm and its product in double, of which a power of two takes the whole part exactly.
typedef double Wide __attribute__((vector_size(2 * BYTES)));
INLINE V power(V x, V y) {
  const V a = absolute(x);
  const Parted parts = parted(a);
  const Wide m = __builtin_convertvector(parts.m, Wide), n = __builtin_convertvector(parts.n, Wide);
  const Wide z = (m - 1.0) / (m + 1.0), u = z * z;
  Wide p = 0.340725775261908 * u + 0.41167297444254486;
  p = p * u + 0.5770835800186052;
  p = p * u + 0.9617966733766117;
  p = p * u + 2.88539008179002;
  const Wide t = (z * p + n) * __builtin_convertvector(y, Wide);
  const V late = __builtin_convertvector(t, V), whole_part = nearest(at_most(160.f, at_least(-160.f, late)));
  V r = __builtin_convertvector(t - __builtin_convertvector(whole_part, Wide), V);
  V e = spread(1.53458075e-4f);
  e = e * r + 1.33999312e-3f;
  e = e * r + 9.61848897e-3f;
  e = e * r + 5.55032878e-2f;
  e = e * r + 2.40226469e-1f;
  e = e * r + 6.93147206e-1f;
  e = times_power(e * r + 1.f, whole_part);
  const V inf = spread(__builtin_inff());
  const VI grows = (VI)(a > 1.f) == (VI)(y > 0.f);
  e = select((VI)(absolute(late) > 155.f) | (VI)(a == 0.f) | (VI)(a == inf) | (VI)(absolute(y) == inf), select(grows, inf, V{}), e);
  const VI even = (VI)(absolute(y) >= 16777216.f), whole_y = even | (VI)(real(whole(y)) == y), odd = whole_y & ~even & ((whole(y) & 1) != 0);
  e = select(odd & (bits_int(x) < 0), -e, e);
  e = select((VI)(x < 0.f) & (VI)(a < inf) & ~whole_y, spread(__builtin_nanf("")), e);
  e = select((VI)(x != x) | (VI)(y != y), x + y, e);
  return select((VI)(y == 0.f) | (VI)(x == 1.f) | ((VI)(a == 1.f) & (VI)(absolute(y) == inf)), spread(1.f), e);
}

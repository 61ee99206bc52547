INLINE T wide(e4m3 x) { return (T)float_of(x); }
INLINE T wide(e5m2 x) { return (T)float_of(x); }
template <> struct Lanes<e4m3> { typedef V type; };
template <> struct Lanes<e5m2> { typedef V type; };

// W neighbours in memory, as `float_of_eighth` widens one.
template <int MANTISSA, int BIAS, int SPECIAL> INLINE V neighbours_of_eighths(const uint8_t* p) {
  typedef uint8_t byte __attribute__((vector_size(W)));
  typedef int32_t word __attribute__((vector_size(4 * W)));
  typedef float single __attribute__((vector_size(4 * W)));
  byte b;
  __builtin_memcpy(&b, p, sizeof b);
  const word given = __builtin_convertvector(b, word), bits = given & 0x7f;
  const single subnormal = __builtin_convertvector(bits, single) * (MANTISSA == 3 ? 0x1p-9f : 0x1p-16f);
  word found = (bits << (23 - MANTISSA)) + (BIAS << 23), small;
  __builtin_memcpy(&small, &subnormal, sizeof small);
  found = bits < (1 << MANTISSA) ? small : found;
  const word special = bits == 0x7c && SPECIAL == 0x7c ? word{} + 0x7f800000 : word{} + 0x7fc00000;
  found = (bits >= SPECIAL ? special : found) | (given & 0x80) << 24;
  single x;
  __builtin_memcpy(&x, &found, sizeof x);
  return __builtin_convertvector(x, V);
}
INLINE V neighbours(const e4m3* p) { return neighbours_of_eighths<3, 120, 0x7f>((const uint8_t*)p); }
INLINE V neighbours(const e5m2* p) { return neighbours_of_eighths<2, 112, 0x7c>((const uint8_t*)p); }

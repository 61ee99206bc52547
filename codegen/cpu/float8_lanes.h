INLINE T wide(e4m3 x) { return (T)float_of(x); }
INLINE T wide(e5m2 x) { return (T)float_of(x); }
template <> struct Lanes<e4m3> { typedef V type; };
template <> struct Lanes<e5m2> { typedef V type; };

// W neighbours in memory, as `float_of_float8` widens one.
template <int MANTISSA> INLINE V neighbours_of_float8(const uint8_t* p) {
  using Type = Float8<MANTISSA>;
  typedef uint8_t byte __attribute__((vector_size(W)));
  typedef int32_t word __attribute__((vector_size(4 * W)));
  typedef float single __attribute__((vector_size(4 * W)));
  byte b;
  __builtin_memcpy(&b, p, sizeof b);
  const word given = __builtin_convertvector(b, word), bits = given & 0x7f;
  const single subnormal = __builtin_convertvector(bits, single) * Type::UNIT;
  word found = (bits << (23 - MANTISSA)) + (Type::BIAS << 23), small;
  __builtin_memcpy(&small, &subnormal, sizeof small);
  found = bits < (1 << MANTISSA) ? small : found;
  word special = word{} + 0x7fc00000;
  if (Type::INFINITE) special = bits == Type::SPECIAL ? word{} + 0x7f800000 : special;
  found = (bits >= Type::SPECIAL ? special : found) | (given & 0x80) << 24;
  single x;
  __builtin_memcpy(&x, &found, sizeof x);
  return __builtin_convertvector(x, V);
}
INLINE V neighbours(const e4m3* p) { return neighbours_of_float8<3>((const uint8_t*)p); }
INLINE V neighbours(const e5m2* p) { return neighbours_of_float8<2>((const uint8_t*)p); }

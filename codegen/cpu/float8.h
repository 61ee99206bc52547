// Floats of 8 bits: 4 bits of exponent and 3 of mantissa (no infinity, NaN with all bits set), or 5 and 2 (the upper half of an f16).
// No step has a subnormal float, which a process may have told its processor to take for 0.

struct e4m3 { uint8_t bits; };
struct e5m2 { uint8_t bits; };

template <int MANTISSA> struct Float8 {
  static constexpr int BIAS = MANTISSA == 3 ? 120 : 112;  // what the exponents of a float and of this type differ by
  static constexpr int SPECIAL = MANTISSA == 3 ? 0x7f : 0x7c;  // infinite or no number from these bits on
  static constexpr float UNIT = MANTISSA == 3 ? 0x1p-9f : 0x1p-16f;  // of a subnormal number
  static constexpr bool INFINITE = MANTISSA == 2;
};
template <int MANTISSA> static inline float float_of_float8(uint8_t given) {
  using Type = Float8<MANTISSA>;
  const int32_t bits = given & 0x7f;
  int32_t found = (bits << (23 - MANTISSA)) + (Type::BIAS << 23);
  if (bits < 1 << MANTISSA) {
    const float subnormal = (float)bits * Type::UNIT;
    __builtin_memcpy(&found, &subnormal, 4);
  }
  if (bits >= Type::SPECIAL) found = Type::INFINITE && bits == Type::SPECIAL ? 0x7f800000 : 0x7fc00000;
  found |= (int32_t)((uint32_t)(given & 0x80) << 24);
  float x;
  __builtin_memcpy(&x, &found, 4);
  return x;
}
static inline float float_of(e4m3 x) { return float_of_float8<3>(x.bits); }
static inline float float_of(e5m2 x) { return float_of_float8<2>(x.bits); }

// Floats of 8 bits: 4 bits of exponent and 3 of mantissa (no infinity, NaN with all bits set), or 5 and 2 (the upper half of an f16).
// No step has a subnormal float, which a process may have told its processor to take for 0.

struct e4m3 { uint8_t bits; };
struct e5m2 { uint8_t bits; };

// BIAS is what the exponents of a float and of this type differ by; bits of at least SPECIAL are infinite or no number.
template <int MANTISSA, int BIAS, uint32_t SPECIAL> static inline float float_of_eighth(uint8_t given) {
  const uint32_t bits = given & 0x7f, sign = (uint32_t)(given & 0x80) << 24;
  uint32_t found = (bits << (23 - MANTISSA)) + ((uint32_t)BIAS << 23);
  if (bits < 1u << MANTISSA) {
    const float subnormal = (float)(int32_t)bits * (MANTISSA == 3 ? 0x1p-9f : 0x1p-16f);
    __builtin_memcpy(&found, &subnormal, 4);
  }
  if (bits >= SPECIAL) found = bits == 0x7c && SPECIAL == 0x7c ? 0x7f800000u : 0x7fc00000u;
  found |= sign;
  float x;
  __builtin_memcpy(&x, &found, 4);
  return x;
}
static inline float float_of(e4m3 x) { return float_of_eighth<3, 120, 0x7f>(x.bits); }
static inline float float_of(e5m2 x) { return float_of_eighth<2, 112, 0x7c>(x.bits); }

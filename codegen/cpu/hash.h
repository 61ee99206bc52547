// A counter-based random number: 31 bits made of the low 32 bits of a key and a counter, the same bits on every back end.
static inline unsigned stirred(unsigned x) {
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}
static inline long hashed(long key, long counter) { return stirred(stirred((unsigned)key ^ 0x9E3779B9u) ^ (unsigned)counter) & 0x7FFFFFFF; }

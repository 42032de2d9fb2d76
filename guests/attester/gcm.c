/*
 * AES-256 in Galois/Counter Mode (FIPS 197, SP 800-38D) with the CPU's AES-NI and PCLMULQDQ. One key, IVs of 12 bytes; text and additional data of any length.
 */
#pragma GCC target("aes,pclmul,ssse3,sse4.1")
#include "gcm.h"

#include <wmmintrin.h>
#include <tmmintrin.h>

static __m128i reversed(__m128i block) {
    return _mm_shuffle_epi8(block, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

static __m128i load(const u8 *bytes) { return _mm_loadu_si128((const __m128i *)bytes); }

/* Up to 16 bytes, zeros behind them. */
static __m128i load_some(const u8 *bytes, u64 size) {
    u8 block[16] = {0};
    for (u64 i = 0; i < size && i < 16; i++) block[i] = bytes[i];
    return load(block);
}

static __m128i spread(__m128i key) {
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    return _mm_xor_si128(key, _mm_slli_si128(key, 4));
}

#define EVEN(i, constant) \
    keys[i] = _mm_xor_si128(spread(keys[i - 2]), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(keys[i - 1], constant), 0xff))
#define ODD(i) keys[i] = _mm_xor_si128(spread(keys[i - 2]), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(keys[i - 1], 0), 0xaa))

static void expand(const u8 key[32], __m128i keys[15]) {
    keys[0] = load(key);
    keys[1] = load(key + 16);
    EVEN(2, 0x01);
    ODD(3);
    EVEN(4, 0x02);
    ODD(5);
    EVEN(6, 0x04);
    ODD(7);
    EVEN(8, 0x08);
    ODD(9);
    EVEN(10, 0x10);
    ODD(11);
    EVEN(12, 0x20);
    ODD(13);
    EVEN(14, 0x40);
}

static __m128i encrypt(const __m128i keys[15], __m128i block) {
    block = _mm_xor_si128(block, keys[0]);
    for (int i = 1; i < 14; i++) block = _mm_aesenc_si128(block, keys[i]);
    return _mm_aesenclast_si128(block, keys[14]);
}

/* Product in GF(2^128), of numbers whose bytes are reversed: carry-less product, one bit up for the reversed bits, reduction by x^128 + x^7 + x^2 + x + 1. */
static __m128i multiply(__m128i a, __m128i b) {
    __m128i low = _mm_clmulepi64_si128(a, b, 0x00), high = _mm_clmulepi64_si128(a, b, 0x11);
    __m128i middle = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x10), _mm_clmulepi64_si128(a, b, 0x01));
    low = _mm_xor_si128(low, _mm_slli_si128(middle, 8));
    high = _mm_xor_si128(high, _mm_srli_si128(middle, 8));
    __m128i low_carry = _mm_srli_epi32(low, 31), high_carry = _mm_srli_epi32(high, 31);
    __m128i across = _mm_srli_si128(low_carry, 12);
    low = _mm_or_si128(_mm_slli_epi32(low, 1), _mm_slli_si128(low_carry, 4));
    high = _mm_or_si128(_mm_or_si128(_mm_slli_epi32(high, 1), _mm_slli_si128(high_carry, 4)), across);
    __m128i fold = _mm_xor_si128(_mm_xor_si128(_mm_slli_epi32(low, 31), _mm_slli_epi32(low, 30)), _mm_slli_epi32(low, 25));
    __m128i rest = _mm_srli_si128(fold, 4);
    low = _mm_xor_si128(low, _mm_slli_si128(fold, 12));
    __m128i down = _mm_xor_si128(_mm_xor_si128(_mm_srli_epi32(low, 1), _mm_srli_epi32(low, 2)), _mm_xor_si128(_mm_srli_epi32(low, 7), rest));
    return _mm_xor_si128(high, _mm_xor_si128(low, down));
}

static __m128i hash(__m128i sum, __m128i h, const u8 *bytes, u64 size) {
    for (u64 at = 0; at < size; at += 16) sum = multiply(_mm_xor_si128(sum, reversed(load_some(bytes + at, size - at))), h);
    return sum;
}

/* The tag over `extra` and the ciphertext. */
static __m128i tag_of(const __m128i keys[15], __m128i counter, const u8 *extra, u64 extra_size, const u8 *ciphertext, u64 size) {
    __m128i h = reversed(encrypt(keys, _mm_setzero_si128()));
    __m128i sum = hash(_mm_setzero_si128(), h, extra, extra_size);
    sum = hash(sum, h, ciphertext, size);
    sum = multiply(_mm_xor_si128(sum, _mm_set_epi64x((long long)(extra_size * 8), (long long)(size * 8))), h);
    return _mm_xor_si128(reversed(sum), encrypt(keys, counter));
}

static __m128i counter_of(const u8 iv[12], u32 number) {
    u8 block[16];
    for (int i = 0; i < 12; i++) block[i] = iv[i];
    for (int i = 0; i < 4; i++) block[12 + i] = (u8)(number >> (24 - 8 * i));
    return load(block);
}

static void crypt(const __m128i keys[15], const u8 iv[12], u8 *text, u64 size) {
    for (u64 at = 0; at < size; at += 16) {
        u8 pad[16];
        _mm_storeu_si128((__m128i *)pad, encrypt(keys, counter_of(iv, (u32)(2 + at / 16))));
        for (u64 i = 0; i < 16 && at + i < size; i++) text[at + i] ^= pad[i];
    }
}

void gcm_seal(const u8 key[32], const u8 iv[12], const u8 *extra, u64 extra_size, u8 *text, u64 size, u8 tag[16]) {
    __m128i keys[15];
    expand(key, keys);
    crypt(keys, iv, text, size);
    _mm_storeu_si128((__m128i *)tag, tag_of(keys, counter_of(iv, 1), extra, extra_size, text, size));
}

int gcm_open(const u8 key[32], const u8 iv[12], const u8 *extra, u64 extra_size, u8 *text, u64 size, const u8 tag[16]) {
    __m128i keys[15];
    u8 expected[16], different = 0;
    expand(key, keys);
    _mm_storeu_si128((__m128i *)expected, tag_of(keys, counter_of(iv, 1), extra, extra_size, text, size));
    for (int i = 0; i < 16; i++) different |= expected[i] ^ tag[i];
    if (different) return 0;
    crypt(keys, iv, text, size);
    return 1;
}

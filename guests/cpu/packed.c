/* Packed integers, shuffles, text instructions, AES and carry-less products, against scalar C. */
#include "check.h"

#pragma GCC target("sse4.2,aes,pclmul")

#include <nmmintrin.h>
#include <wmmintrin.h>

#define LANES(type) (16 / sizeof(type))

/* A vector as lanes. */
union vector {
    __m128i v;
    u8 b[16];
    signed char sb[16];
    u16 h[8];
    short sh[8];
    u32 w[4];
    int sw[4];
    u64 d[2];
    s64 sd[2];
};

static union vector random_vector(void) {
    union vector x;
    x.d[0] = value();
    x.d[1] = value() * 0x9e3779b97f4a7c15ul;
    return x;
}
static void expect_vector(const char *what, __m128i got, union vector want) {
    union vector x = {.v = got};
    expect(what, x.d[0], want.d[0]);
    expect(what, x.d[1], want.d[1]);
}
static int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

/* want.lane[i] = expression, for each lane of that name. */
#define EACH(lane, expression)                                                                                        \
    do {                                                                                                              \
        for (unsigned i = 0; i < LANES(want.lane[0]); i++) {                                                          \
            want.lane[i] = (expression);                                                                              \
            __asm__ volatile("" : : : "memory");                                                                      \
        }                                                                                                             \
    } while (0)
#define CHECK(intrinsic, lane, expression)                                                                            \
    do {                                                                                                              \
        union vector want;                                                                                            \
        EACH(lane, expression);                                                                                       \
        expect_vector(#intrinsic, intrinsic(x.v, y.v), want);                                                         \
    } while (0)

void packed_integers(void) {
    for (int round = 0; round < 200; round++) {
        union vector x = random_vector(), y = random_vector();
        CHECK(_mm_add_epi8, b, (u8)(x.b[i] + y.b[i]));
        CHECK(_mm_sub_epi16, h, (u16)(x.h[i] - y.h[i]));
        CHECK(_mm_add_epi32, w, x.w[i] + y.w[i]);
        CHECK(_mm_sub_epi64, d, x.d[i] - y.d[i]);
        CHECK(_mm_adds_epi8, sb, (signed char)clamp(x.sb[i] + y.sb[i], -128, 127));
        CHECK(_mm_subs_epu8, b, (u8)clamp(x.b[i] - y.b[i], 0, 255));
        CHECK(_mm_adds_epi16, sh, (short)clamp(x.sh[i] + y.sh[i], -32768, 32767));
        CHECK(_mm_avg_epu8, b, (u8)((x.b[i] + y.b[i] + 1) >> 1));
        CHECK(_mm_mullo_epi16, h, (u16)(x.h[i] * y.h[i]));
        CHECK(_mm_mulhi_epi16, sh, (short)((x.sh[i] * y.sh[i]) >> 16));
        CHECK(_mm_mullo_epi32, w, x.w[i] * y.w[i]);
        CHECK(_mm_mul_epu32, d, (u64)x.w[2 * i] * y.w[2 * i]);
        CHECK(_mm_mul_epi32, sd, (s64)x.sw[2 * i] * y.sw[2 * i]);
        CHECK(_mm_madd_epi16, sw, (int)((u32)(x.sh[2 * i] * y.sh[2 * i]) + (u32)(x.sh[2 * i + 1] * y.sh[2 * i + 1])));
        CHECK(_mm_min_epi8, sb, x.sb[i] < y.sb[i] ? x.sb[i] : y.sb[i]);
        CHECK(_mm_max_epu32, w, x.w[i] > y.w[i] ? x.w[i] : y.w[i]);
        CHECK(_mm_cmpeq_epi8, b, x.b[i] == y.b[i] ? 0xff : 0);
        CHECK(_mm_cmpgt_epi32, w, x.sw[i] > y.sw[i] ? ~0u : 0);
        CHECK(_mm_cmpgt_epi64, d, x.sd[i] > y.sd[i] ? ~0ul : 0);
        CHECK(_mm_andnot_si128, d, ~x.d[i] & y.d[i]);
        {
            union vector want, count = {.d = {y.d[0] & 31, 0}};
            EACH(h, count.d[0] < 16 ? (u16)(x.h[i] << count.d[0]) : 0);
            expect_vector("psllw", _mm_sll_epi16(x.v, count.v), want);
            EACH(sw, x.sw[i] >> (count.d[0] < 32 ? count.d[0] : 31));
            expect_vector("psrad", _mm_sra_epi32(x.v, count.v), want);
            EACH(d, i == 0 ? (x.d[0] >> 24 | x.d[1] << 40) : x.d[1] >> 24);
            expect_vector("psrldq", _mm_srli_si128(x.v, 3), want);
        }
        {
            u64 sum[2] = {0, 0}, mask = 0;
            for (unsigned i = 0; i < 16; i++) {
                sum[i / 8] += x.b[i] > y.b[i] ? x.b[i] - y.b[i] : y.b[i] - x.b[i];
                mask |= (u64)(x.b[i] >> 7) << i;
            }
            union vector want = {.d = {sum[0], sum[1]}};
            expect_vector("psadbw", _mm_sad_epu8(x.v, y.v), want);
            expect("pmovmskb", (u32)_mm_movemask_epi8(x.v), mask);
            expect("ptest", (u64)_mm_testz_si128(x.v, y.v), ((x.d[0] & y.d[0]) | (x.d[1] & y.d[1])) == 0);
        }
    }
}

void shuffles(void) {
    for (int round = 0; round < 200; round++) {
        union vector x = random_vector(), y = random_vector();
        CHECK(_mm_shuffle_epi8, b, y.b[i] & 0x80 ? 0 : x.b[y.b[i] & 15]);
        CHECK(_mm_sign_epi16, sh, (short)(y.sh[i] < 0 ? -x.sh[i] : y.sh[i] == 0 ? 0 : x.sh[i]));
        CHECK(_mm_hadd_epi32, w, i < 2 ? x.w[2 * i] + x.w[2 * i + 1] : y.w[2 * i - 4] + y.w[2 * i - 3]);
        CHECK(_mm_maddubs_epi16, sh,
              (short)clamp(x.b[2 * i] * y.sb[2 * i] + x.b[2 * i + 1] * y.sb[2 * i + 1], -32768, 32767));
        CHECK(_mm_unpacklo_epi8, b, i & 1 ? y.b[i / 2] : x.b[i / 2]);
        CHECK(_mm_unpackhi_epi32, w, i & 1 ? y.w[2 + i / 2] : x.w[2 + i / 2]);
        CHECK(_mm_packs_epi16, sb, (signed char)clamp(i < 8 ? x.sh[i] : y.sh[i - 8], -128, 127));
        CHECK(_mm_packus_epi32, h, (u16)clamp(i < 4 ? x.sw[i] : y.sw[i - 4], 0, 65535));
        {
            union vector want;
            EACH(w, x.w[(0x1b >> (2 * i)) & 3]);
            expect_vector("pshufd", _mm_shuffle_epi32(x.v, 0x1b), want);
            EACH(b, i < 11 ? x.b[i + 5] : y.b[i - 11]);
            expect_vector("palignr", _mm_alignr_epi8(y.v, x.v, 5), want);
            EACH(b, x.b[i] & 0x80 ? y.b[i] : x.b[i]);
            expect_vector("pblendvb", _mm_blendv_epi8(x.v, y.v, x.v), want);
            EACH(h, i == 3 ? (u16)round : x.h[i]);
            expect_vector("pinsrw", _mm_insert_epi16(x.v, round, 3), want);
            EACH(sw, x.sb[i]);
            expect_vector("pmovsxbd", _mm_cvtepi8_epi32(x.v), want);
            expect("pextrq", (u64)_mm_extract_epi64(x.v, 1), x.d[1]);
        }
    }
}

void text(void) {
    static const char haystack[] = "The quick brown fox jumps over the lazy dog, and nothing else matters at all";
    static char buffer[128] __attribute__((aligned(16)));
    for (unsigned length = 0; length < 60; length++) {
        const char *at = buffer;
        int found;
        for (unsigned i = 0; i < 128; i++) buffer[i] = i < length ? 'x' : 0;
        do found = _mm_cmpistri(_mm_setzero_si128(), _mm_load_si128((const __m128i *)(const void *)at), 8), at += 16;
        while (found == 16);
        expect("length by pcmpistri", (u64)(at - 16 - buffer) + (u64)found, length);
    }
    for (unsigned from = 0; from + 20 < sizeof haystack; from++) {
        __m128i piece = _mm_loadu_si128((const __m128i *)(const void *)(haystack + from));
        __m128i vowels = _mm_setr_epi8('a', 'e', 'i', 'o', 'u', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        __m128i range = _mm_setr_epi8('a', 'm', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        u64 first = 16, mask = 0;
        for (unsigned i = 16; i-- > 0;) {
            char c = haystack[from + i];
            if (c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u') first = i;
            if (c >= 'a' && c <= 'm') mask |= 1ul << i;
        }
        expect("vowel by pcmpistri", (u64)_mm_cmpistri(vowels, piece, 0), first);
        expect("range by pcmpestrm", (u64)_mm_cvtsi128_si64(_mm_cmpestrm(range, 2, piece, 16, 4)), mask);
        expect("equal to itself", (u64)_mm_cmpestri(piece, 16, piece, 16, 0x18), 16);
    }
}

static u8 times_two(u8 x) { return (u8)(x << 1 ^ (x & 0x80 ? 0x1b : 0)); }

/* The S-box: the inverse in GF(2^8), and an affine map. */
static u8 substitute(u8 x) {
    u8 inverse = 0, result = 0x63;
    for (unsigned candidate = 1; x != 0 && candidate < 256; candidate++) {
        u8 product = 0, a = x;
        for (unsigned b = candidate; b != 0; b >>= 1, a = times_two(a))
            if (b & 1) product ^= a;
        if (product == 1) inverse = (u8)candidate;
    }
    for (unsigned k = 0; k < 5; k++) result ^= (u8)(inverse << k | inverse >> (8 - k));
    return result;
}

void crypto(void) {
    static u8 box[256];
    for (unsigned i = 0; i < 256; i++) box[i] = substitute((u8)i);
    for (int round = 0; round < 100; round++) {
        union vector x = random_vector(), key = random_vector(), want, last;
        for (unsigned column = 0; column < 4; column++) {
            u8 s[4];
            for (unsigned row = 0; row < 4; row++) s[row] = box[x.b[4 * ((column + row) & 3) + row]];
            for (unsigned row = 0; row < 4; row++) {
                last.b[4 * column + row] = s[row] ^ key.b[4 * column + row];
                want.b[4 * column + row] = times_two(s[row]) ^ times_two(s[(row + 1) & 3]) ^ s[(row + 1) & 3] ^
                                           s[(row + 2) & 3] ^ s[(row + 3) & 3] ^ key.b[4 * column + row];
            }
        }
        expect_vector("aesenc", _mm_aesenc_si128(x.v, key.v), want);
        expect_vector("aesenclast", _mm_aesenclast_si128(x.v, key.v), last);
        /* Decrypting the last round gives the state back, with the rows shifted and substituted the other way. */
        expect_vector("aesdeclast", _mm_aesdeclast_si128(_mm_aesenclast_si128(x.v, _mm_setzero_si128()), _mm_setzero_si128()), x);
        {
            union vector product = {.d = {0, 0}};
            for (unsigned i = 0; i < 64; i++)
                if (key.d[1] >> i & 1) {
                    product.d[0] ^= x.d[0] << i;
                    if (i != 0) product.d[1] ^= x.d[0] >> (64 - i);
                }
            expect_vector("pclmulqdq", _mm_clmulepi64_si128(x.v, key.v, 0x10), product);
        }
    }
}

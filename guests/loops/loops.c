/*
 * Five loops that keep a core busy, each in rounds, with a line when a loop begins, a dot a round, and a checksum at the end.
 * ROUNDS and the sizes are small for tests; the bench builds them larger (see Makefile) and takes the time between the dots.
 */
#include "guest.h"

#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef SCALE
#define SCALE 1
#endif

#define SIEVE (1u << 15)
#define BUFFER (1u << 15)

static u8 composite[SIEVE];
static u64 source[BUFFER / 8], target[BUFFER / 8];
static u32 crc_table[256];

/* Number of primes below SIEVE. */
static u64 sieve(void) {
    u64 primes = 0;
    for (u32 i = 0; i < SIEVE; i++) composite[i] = 0;
    for (u32 i = 2; i < SIEVE; i++) {
        if (composite[i]) continue;
        primes++;
        for (u32 j = i * 2; j < SIEVE; j += i) composite[j] = 1;
    }
    return primes;
}

static u64 crc(void) {
    u32 sum = 0xffffffff;
    for (u32 i = 0; i < BUFFER; i++) sum = crc_table[(u8)(sum ^ ((const u8 *)source)[i])] ^ (sum >> 8);
    return ~sum;
}

static u64 copy(void) {
    u64 sum = 0;
    for (u32 pass = 0; pass < 8; pass++) {
        for (u32 i = 0; i < BUFFER / 8; i++) target[i] = source[i] + pass;
        sum += target[pass * 7];
    }
    return sum;
}

static u64 xorshift(void) {
    u64 x = 88172645463325252ul;
    for (u32 i = 0; i < 40000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    return x;
}

static u64 __attribute__((noinline)) fib(u32 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static u64 fib_21(void) { return fib(21); }

/* `weight` makes rounds of the short loops last about as long as those of the others. */
static void run(const char *name, u64 (*loop)(void), u32 weight) {
    u64 sum = 0;
    u32 calls = SCALE == 1 ? 1 : SCALE * weight;
    printf("%s ", name);
    for (u32 round = 0; round < ROUNDS; round++) {
        for (u32 i = 0; i < calls; i++) sum += loop();
        putc('.');
    }
    printf(" 0x%lx\n", sum);
}

int main(void) {
    for (u32 i = 0; i < 256; i++) {
        u32 value = i;
        for (u32 bit = 0; bit < 8; bit++) value = (value & 1 ? 0xedb88320 : 0) ^ (value >> 1);
        crc_table[i] = value;
    }
    for (u32 i = 0; i < BUFFER / 8; i++) source[i] = i * 0x9e3779b97f4a7c15ul;
    run("sieve", sieve, 1);
    run("crc", crc, 1);
    run("copy", copy, 6);
    run("xorshift", xorshift, 4);
    run("fib", fib_21, 1);
    return 0;
}

/* Integer arithmetic with its flags, bits, multiplication and division, exchanges, the stack, strings. */
#include "check.h"

#pragma GCC target("popcnt,lzcnt,bmi,bmi2,movbe,crc32,cx16")

#define ROUNDS 400

static u64 mask_of(int size) { return size == 64 ? ~0ul : (1ul << size) - 1; }
static u64 sign_of(int size) { return 1ul << (size - 1); }

/* PF, ZF, SF of a result. */
static u64 flags_of(u64 result, int size) {
    u64 low = result & 0xff, parity = low ^ (low >> 4);
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return ((parity & 1) ? 0 : PF) | ((result & mask_of(size)) == 0 ? ZF : 0) | ((result & sign_of(size)) ? SF : 0);
}

static u64 model_add(u64 a, u64 b, u64 carry, int size, u64 *flags) {
    u64 mask = mask_of(size), sum;
    unsigned __int128 wide;
    a &= mask;
    b &= mask;
    wide = (unsigned __int128)a + b + carry;
    sum = (u64)wide & mask;
    *flags = flags_of(sum, size) | ((wide >> size) ? CF : 0) | (((a ^ b ^ sum) & 16) ? AF : 0) |
             ((~(a ^ b) & (a ^ sum) & sign_of(size)) ? OF : 0);
    return sum;
}
static u64 model_sub(u64 a, u64 b, u64 borrow, int size, u64 *flags) {
    u64 mask = mask_of(size), difference;
    a &= mask;
    b &= mask;
    difference = (a - b - borrow) & mask;
    *flags = flags_of(difference, size) | ((unsigned __int128)a < (unsigned __int128)b + borrow ? CF : 0) |
             (((a ^ b ^ difference) & 16) ? AF : 0) | (((a ^ b) & (a ^ difference) & sign_of(size)) ? OF : 0);
    return difference;
}

/* One instruction of two operands at a size, with CF given: result and flags. */
#define RUN(instruction, type, a, b, carry)                                                                          \
    ({                                                                                                                \
        type result_ = (type)(a);                                                                                     \
        u64 flags_;                                                                                                   \
        __asm__ volatile("bt $0, %2\n\t" instruction " %3, %0\n\tpushfq\n\tpopq %1"                                   \
                         : "+r"(result_), "=&r"(flags_)                                                               \
                         : "r"((u64)(carry)), "r"((type)(b))                                                          \
                         : "cc", "memory");                                                                           \
        got_flags = flags_ & ARITHMETIC;                                                                              \
        (u64) result_;                                                                                                \
    })

#define ADD_AND_SUB(type, size)                                                                                       \
    do {                                                                                                              \
        u64 got_flags, want_flags, got;                                                                               \
        got = RUN("add", type, a, b, carry);                                                                          \
        expect("add", got, model_add(a, b, 0, size, &want_flags));                                                    \
        expect("flags of add", got_flags, want_flags);                                                                \
        got = RUN("adc", type, a, b, carry);                                                                          \
        expect("adc", got, model_add(a, b, carry, size, &want_flags));                                                \
        expect("flags of adc", got_flags, want_flags);                                                                \
        got = RUN("sub", type, a, b, carry);                                                                          \
        expect("sub", got, model_sub(a, b, 0, size, &want_flags));                                                    \
        expect("flags of sub", got_flags, want_flags);                                                                \
        got = RUN("sbb", type, a, b, carry);                                                                          \
        expect("sbb", got, model_sub(a, b, carry, size, &want_flags));                                                \
        expect("flags of sbb", got_flags, want_flags);                                                                \
        got = RUN("cmp", type, a, b, carry);                                                                          \
        model_sub(a, b, 0, size, &want_flags);                                                                        \
        expect("cmp leaves its operand", got, a & mask_of(size));                                                     \
        expect("flags of cmp", got_flags, want_flags);                                                                \
        got = RUN("and", type, a, b, carry);                                                                          \
        expect("and", got, a & b & mask_of(size));                                                                    \
        expect("flags of and", got_flags & ~AF, flags_of(a & b, size));                                               \
        got = RUN("xor", type, a, b, carry);                                                                          \
        expect("xor", got, (a ^ b) & mask_of(size));                                                                  \
        expect("flags of xor", got_flags & ~AF, flags_of(a ^ b, size));                                               \
    } while (0)

#define SHIFT(instruction, type, x, count)                                                                            \
    ({                                                                                                                \
        type result_ = (type)(x);                                                                                     \
        __asm__ volatile(instruction " %%cl, %0" : "+r"(result_) : "c"((u8)(count)) : "cc");                          \
        (u64) result_;                                                                                                \
    })

static void shifts(u64 a, u64 b) {
    unsigned count = (unsigned)b & 63, rotate = count & 63;
    u32 low = (u32)a;
    unsigned narrow = (unsigned)b & 31;
    expect("shl", SHIFT("shlq", u64, a, b), a << count);
    expect("shr", SHIFT("shrq", u64, a, b), a >> count);
    expect("sar", SHIFT("sarq", u64, a, b), (u64)((s64)a >> count));
    expect("rol", SHIFT("rolq", u64, a, b), rotate ? a << rotate | a >> (64 - rotate) : a);
    expect("ror", SHIFT("rorq", u64, a, b), rotate ? a >> rotate | a << (64 - rotate) : a);
    expect("shl of 32 bits", SHIFT("shll", u32, low, b), (u32)(low << narrow));
    expect("sar of 32 bits", SHIFT("sarl", u32, low, b), (u32)((int)low >> narrow));
    expect("rol of 32 bits", SHIFT("roll", u32, low, b), narrow ? (u32)(low << narrow | low >> (32 - narrow)) : low);
    {
        u64 result = a;
        __asm__("shldq %%cl, %1, %0" : "+r"(result) : "r"(~a), "c"((u8)b) : "cc");
        expect("shld", result, count ? a << count | ~a >> (64 - count) : a);
        result = a;
        __asm__("shrdq %%cl, %1, %0" : "+r"(result) : "r"(~a), "c"((u8)b) : "cc");
        expect("shrd", result, count ? a >> count | ~a << (64 - count) : a);
    }
}

void integers(void) {
    for (int round = 0; round < ROUNDS; round++) {
        u64 a = value(), b = value(), carry = value() & 1;
        ADD_AND_SUB(u8, 8);
        ADD_AND_SUB(u16, 16);
        ADD_AND_SUB(u32, 32);
        ADD_AND_SUB(u64, 64);
        shifts(a, b);
    }
}

void bits(void) {
    static u64 field[8];
    for (int round = 0; round < ROUNDS; round++) {
        u64 a = value(), b = value(), result, ones = 0, leading = 64, trailing = 64, packed = 0, spread = 0, swapped = 0;
        u32 sum = (u32)b, model = (u32)b;
        unsigned k = 0;
        s64 at;
        u8 before;
        for (int i = 0; i < 64; i++) {
            if (a >> i & 1) {
                ones++;
                if (trailing == 64) trailing = (u64)i;
                leading = 63 - (u64)i;
            }
            if (b >> i & 1) {
                packed |= (a >> i & 1) << k;
                spread |= (a >> k & 1) << i;
                k++;
            }
        }
        for (int i = 0; i < 8; i++) swapped |= (a >> (8 * i) & 0xff) << (56 - 8 * i);
        __asm__("popcnt %1, %0" : "=r"(result) : "r"(a) : "cc");
        expect("popcnt", result, ones);
        __asm__("lzcnt %1, %0" : "=r"(result) : "r"(a) : "cc");
        expect("lzcnt", result, leading);
        __asm__("tzcnt %1, %0" : "=r"(result) : "r"(a) : "cc");
        expect("tzcnt", result, trailing);
        if (a != 0) {
            __asm__("bsf %1, %0" : "=r"(result) : "r"(a) : "cc");
            expect("bsf", result, trailing);
            __asm__("bsr %1, %0" : "=r"(result) : "r"(a) : "cc");
            expect("bsr", result, 63 - leading);
        }
        __asm__("pext %2, %1, %0" : "=r"(result) : "r"(a), "r"(b));
        expect("pext", result, packed);
        __asm__("pdep %2, %1, %0" : "=r"(result) : "r"(a), "r"(b));
        expect("pdep", result, spread);
        __asm__("andn %2, %1, %0" : "=r"(result) : "r"(a), "r"(b) : "cc");
        expect("andn", result, ~a & b);
        __asm__("blsi %1, %0" : "=r"(result) : "r"(a) : "cc");
        expect("blsi", result, a & -a);
        __asm__("blsr %1, %0" : "=r"(result) : "r"(a) : "cc");
        expect("blsr", result, a & (a - 1));
        __asm__("bzhi %2, %1, %0" : "=r"(result) : "r"(a), "r"(b) : "cc");
        expect("bzhi", result, (b & 0xff) < 64 ? a & ((1ul << (b & 63)) - 1) : a);
        result = a;
        __asm__("bswap %0" : "+r"(result));
        expect("bswap", result, swapped);
        __asm__("movbe %1, %0" : "=r"(result) : "m"(a));
        expect("movbe", result, swapped);
        __asm__("crc32b %1, %0" : "+r"(sum) : "r"((u8)a));
        model ^= (u8)a;
        for (int i = 0; i < 8; i++) model = (model & 1 ? 0x82f63b78 : 0) ^ (model >> 1);
        expect("crc32", sum, model);
        /* A bit far away, on both sides of the operand. */
        at = (s64)(b & 511) - 256;
        for (int i = 0; i < 8; i++) field[i] = a;
        __asm__ volatile("btcq %2, %1\n\tsetc %0" : "=q"(before), "+m"(field[4]) : "r"(at) : "cc", "memory");
        expect("bit before btc", before, a >> (at & 63) & 1);
        for (int i = 0; i < 8; i++) expect("btc", field[i], i == 4 + (at >> 6) ? a ^ 1ul << (at & 63) : a);
    }
}

void multiplication(void) {
    for (int round = 0; round < ROUNDS; round++) {
        u64 a = value(), b = value(), low = a, high = 0, quotient, rest;
        unsigned __int128 product = (unsigned __int128)a * b, dividend;
        __int128 signed_product = (__int128)(s64)a * (s64)b;
        __asm__("mulq %2" : "+a"(low), "=d"(high) : "r"(b) : "cc");
        expect("mul", low, (u64)product);
        expect("mul, upper half", high, (u64)(product >> 64));
        low = a;
        __asm__("imulq %2" : "+a"(low), "=d"(high) : "r"(b) : "cc");
        expect("imul, upper half", high, (u64)(signed_product >> 64));
        if (b == 0) continue;
        /* A product and a rest below the divisor give themselves back. */
        rest = value() % b;
        dividend = product + rest;
        if (dividend < product) continue;
        __asm__("divq %4" : "=a"(quotient), "=d"(high) : "0"((u64)dividend), "1"((u64)(dividend >> 64)), "r"(b) : "cc");
        expect("div", quotient, a);
        expect("rest of div", high, rest);
        {
            s64 x = (s64)a >> 1, y = (s64)b | 1, q, r;
            __asm__("cqto\n\tidivq %3" : "=a"(q), "=&d"(r) : "0"(x), "r"(y) : "cc");
            expect("idiv", (u64)(q * y + r), (u64)x);
            expect("sign of idiv's rest", r == 0 || (r < 0) == (x < 0), 1);
        }
        {
            u32 q32, r32, divisor = (u32)b | 0x80000000, top = (u32)(a >> 32) % divisor;
            u64 whole = (u64)top << 32 | (u32)a;
            __asm__("divl %4" : "=a"(q32), "=d"(r32) : "0"((u32)a), "1"(top), "r"(divisor) : "cc");
            expect("div of 32 bits", (u64)q32 * divisor + r32, whole);
            expect("rest below the divisor", r32 < divisor, 1);
        }
    }
}

void exchanges(void) {
    static u64 pair[2] __attribute__((aligned(16)));
    for (int round = 0; round < ROUNDS; round++) {
        u64 a = value(), b = value(), memory = a, reg = b, low, high;
        u8 done;
        __asm__ volatile("lock xaddq %0, %1" : "+r"(reg), "+m"(memory) : : "cc");
        expect("xadd", memory, a + b);
        expect("xadd gives the old value", reg, a);
        __asm__ volatile("xchgq %0, %1" : "+r"(reg), "+m"(memory));
        expect("xchg", memory, a);
        low = round & 1 ? a : ~a;
        __asm__ volatile("lock cmpxchgq %3, %1\n\tsete %0" : "=q"(done), "+m"(memory), "+a"(low) : "r"(b) : "cc");
        expect("cmpxchg stores", memory, round & 1 ? b : a);
        expect("cmpxchg loads", low, a);
        expect("cmpxchg says so", done, (u64)(round & 1));
        pair[0] = a;
        pair[1] = b;
        low = a;
        high = round & 1 ? b : ~b;
        __asm__ volatile("lock cmpxchg16b %1\n\tsete %0"
                         : "=q"(done), "+m"(pair), "+a"(low), "+d"(high)
                         : "b"(~a), "c"(a ^ b)
                         : "cc");
        expect("cmpxchg16b stores", pair[0], round & 1 ? ~a : a);
        expect("cmpxchg16b stores above", pair[1], round & 1 ? a ^ b : b);
        expect("cmpxchg16b loads", high, b);
    }
}

void stacks(void) {
    for (int round = 0; round < ROUNDS; round++) {
        u64 a = value(), got, before, after, flags;
        u16 half;
        __asm__ volatile("pushq %1\n\tpopq %0" : "=r"(got) : "r"(a) : "memory");
        expect("push and pop", got, a);
        __asm__ volatile("pushw %1\n\tpopw %0" : "=r"(half) : "r"((u16)a) : "memory");
        expect("push and pop of 16 bits", half, (u16)a);
        __asm__ volatile("movq %%rsp, %0\n\tpushq %2\n\tenter $64, $0\n\tmovq 8(%%rbp), %1\n\tleave\n\tpopq %%rcx\n\t"
                         "subq %%rsp, %0"
                         : "=&r"(before), "=&r"(got)
                         : "r"(a)
                         : "rcx", "memory", "cc");
        expect("enter's frame", got, a);
        expect("leave", before, 0);
        __asm__ volatile("pushq %2\n\tpopfq\n\tpushfq\n\tpopq %0\n\tcld" : "=r"(flags), "=r"(after) : "r"((a & ARITHMETIC) | 2) : "cc", "memory");
        expect("popf and pushf", flags & ARITHMETIC, a & ARITHMETIC);
        __asm__ volatile("sahf\n\tlahf" : "+a"(a) : : "cc");
        expect("sahf and lahf", a >> 8 & 0xd7, ((a >> 8) | 2) & 0xd7);
    }
}

void strings(void) {
    static u8 from[300], to[300], model[300];
    for (int round = 0; round < 100; round++) {
        u64 count = value() % 64, offset = value() % 32, gap = value() % 32, left;
        u8 *source = from + offset, *target = to + gap, *end;
        for (int i = 0; i < 300; i++) {
            from[i] = (u8)value();
            model[i] = to[i] = (u8)(i * 7);
        }
        for (u64 i = 0; i < count; i++) model[gap + i] = from[offset + i];
        left = count;
        __asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(left) : : "memory");
        for (int i = 0; i < 300; i++) expect("movs", to[i], model[i]);
        expect("movs goes on", (u64)(target - to), gap + count);
        expect("movs counts down", left, 0);
        /* Backwards, words, from the end. */
        source = from + offset + 8 * (count / 8) - 8;
        target = to + 100 + 8 * (count / 8) - 8;
        for (u64 i = 0; i < 8 * (count / 8); i++) model[100 + i] = from[offset + i];
        left = count / 8;
        __asm__ volatile("std\n\trep movsq\n\tcld" : "+S"(source), "+D"(target), "+c"(left) : : "memory", "cc");
        for (int i = 0; i < 300; i++) expect("movs backwards", to[i], model[i]);
        /* The first difference, and a byte in a row of others. */
        source = from + offset;
        target = to + gap;
        for (u64 i = 0; i < 64; i++) target[i] = source[i];
        target[count] ^= 1;
        left = 64;
        __asm__ volatile("repe cmpsb" : "+S"(source), "+D"(target), "+c"(left) : : "memory", "cc");
        expect("cmps", left, 63 - count);
        end = to + 128;
        for (u64 i = 0; i < 64; i++) end[i] = 0x55;
        end[count] = 0x56;
        left = 64;
        __asm__ volatile("repne scasb" : "+D"(end), "+c"(left) : "a"((u8)0x56) : "memory", "cc");
        expect("scas", (u64)(end - to), 129 + count);
    }
}

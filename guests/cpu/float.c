/* Scalar and packed floating point: results that the compiler computed beforehand, and identities that hold bit for bit. */
#include "check.h"

#pragma GCC target("sse4.1")

typedef double v2d __attribute__((vector_size(16)));
typedef float v4f __attribute__((vector_size(16)));
typedef int v4i __attribute__((vector_size(16)));

static u64 of_double(double x) {
    u64 word;
    memcpy(&word, &x, 8);
    return word;
}
static u64 of_float(float x) {
    u32 word;
    memcpy(&word, &x, 4);
    return word;
}
static double to_double(u64 word) {
    double x;
    memcpy(&x, &word, 8);
    return x;
}

/* The compiler computes with constants, the guest with what it loads. */
#define BINARY(a, op, b)                                                                                              \
    do {                                                                                                              \
        volatile double x_ = (a), y_ = (b);                                                                           \
        volatile float xf_ = (float)(a), yf_ = (float)(b);                                                            \
        expect(#a " " #op " " #b, of_double(x_ op y_), of_double((a)op(b)));                                          \
        expect(#a " " #op " " #b " (float)", of_float(xf_ op yf_), of_float((float)(a)op(float)(b)));                 \
    } while (0)
#define ALL(a, b)                                                                                                     \
    BINARY(a, +, b);                                                                                                  \
    BINARY(a, -, b);                                                                                                  \
    BINARY(a, *, b);                                                                                                  \
    BINARY(a, /, b)

static double square_root(double x) {
    double result;
    __asm__("sqrtsd %1, %0" : "=x"(result) : "x"(x));
    return result;
}

static u32 set_rounding(u32 mode) {
    u32 old, new;
    __asm__ volatile("stmxcsr %0" : "=m"(old));
    new = (old & ~0x6000u) | mode << 13;
    __asm__ volatile("ldmxcsr %0" : : "m"(new));
    return old;
}

void floats(void) {
    u32 old;
    ALL(1.0, 3.0);
    ALL(0.1, 0.2);
    ALL(1e300, 1e-300);
    ALL(-7.25, 0.375);
    ALL(4.9e-324, 3.0);
    ALL(1.7976931348623157e308, 0.75);
    ALL(-0.0, 5.0);
    ALL(3.4e38, 1.1);
    expect("sqrt 2", of_double(square_root(2.0)), 0x3ff6a09e667f3bcd);
    expect("sqrt of a denormal", of_double(square_root(4.9e-324)), 0x1e60000000000000);
    expect("sqrt -0", of_double(square_root(-0.0)), 0x8000000000000000);
    expect("sqrt -1", of_double(square_root(-1.0)), 0xfff8000000000000);
    /* 1/3 in the four rounding modes: nearest, down, up, to zero. */
    for (u32 mode = 0; mode < 4; mode++) {
        volatile double one = 1.0, minus = -1.0, three = 3.0;
        double up, down;
        old = set_rounding(mode);
        up = one / three;
        down = minus / three;
        __asm__ volatile("" : "+x"(up), "+x"(down));
        __asm__ volatile("ldmxcsr %0" : : "m"(old));
        expect("1/3 rounded", of_double(up), 0x3fd5555555555555 + (mode == 2));
        expect("-1/3 rounded", of_double(down), 0xbfd5555555555555 + (mode == 1));
    }
    /* roundsd to each direction. */
    {
        volatile double x = -2.5;
        double nearest, lower, upper, cut;
        __asm__("roundsd $0, %1, %0" : "=x"(nearest) : "x"(x));
        __asm__("roundsd $1, %1, %0" : "=x"(lower) : "x"(x));
        __asm__("roundsd $2, %1, %0" : "=x"(upper) : "x"(x));
        __asm__("roundsd $3, %1, %0" : "=x"(cut) : "x"(x));
        expect("round to even", of_double(nearest), of_double(-2.0));
        expect("floor", of_double(lower), of_double(-3.0));
        expect("ceil", of_double(upper), of_double(-2.0));
        expect("cut", of_double(cut), of_double(-2.0));
    }
    /* The square of a root, and a sum in two orders of magnitude, over many values. */
    for (int i = 0; i < 200; i++) {
        double x = to_double((value() >> 12) | 0x3ff0000000000000), y = to_double((value() >> 12) | 0x3fe0000000000000);
        double sum = x + y, big = x > y ? x : y, small = x > y ? y : x;
        v2d a = {x, y}, b = {y, x}, both = a * b, sums = a + b;
        double error = small - (sum - big);
        expect("sum and its error", of_double(sum + error), of_double(sum));
        expect("difference of a sum", of_double((sum - big) + error), of_double(small));
        expect("product in lanes", of_double(both[0]), of_double(x * y));
        expect("product in lanes, above", of_double(both[1]), of_double(both[0]));
        expect("sum in lanes", of_double(sums[1]), of_double(sum));
        expect("ordered", x < y, of_double(x) < of_double(y));
        expect("min and max", of_double(small) <= of_double(big), 1);
    }
    {
        volatile double nan = to_double(0x7ff8000000000001), one = 1.0;
        u8 parity, less;
        __asm__("ucomisd %3, %2\n\tsetp %0\n\tsetb %1" : "=q"(parity), "=q"(less) : "x"(nan), "x"(one) : "cc");
        expect("unordered", parity & less, 1);
        expect("NaN goes through", of_double(nan + one), 0x7ff8000000000001);
    }
}

void conversions(void) {
    for (int i = 0; i < 300; i++) {
        s64 x = (s64)value();
        int narrow = (int)x;
        double wide = (double)x, exact = (double)narrow;
        float single = (float)narrow;
        s64 back;
        int narrow_back;
        /* What a conversion to double keeps: the 53 bits from the top one on, rounded to even. */
        u64 magnitude = x < 0 ? -(u64)x : (u64)x, rounded = magnitude;
        int shift = 0;
        while (rounded >> shift >> 53) shift++;
        if (shift > 0) {
            u64 half = 1ul << (shift - 1), rest = magnitude & ((1ul << shift) - 1);
            rounded = magnitude >> shift;
            rounded += rest > half || (rest == half && (rounded & 1));
            rounded <<= shift;
        }
        if (rounded < 1ul << 63) {
            __asm__("cvttsd2siq %1, %0" : "=r"(back) : "x"(wide));
            expect("to double and back", (u64)back, x < 0 ? -rounded : rounded);
        }
        __asm__("cvttsd2sil %1, %0" : "=r"(narrow_back) : "x"(exact));
        expect("32 bits to double and back", (u32)narrow_back, (u32)narrow);
        expect("float is double, rounded", of_float((float)exact), of_float(single));
        expect("float to double", of_double((double)(float)exact), of_double((double)single));
        {
            v4i four = {narrow, narrow ^ 0x5555, (int)(x >> 32), i};
            v4f floats_of = __builtin_convertvector(four, v4f);
            for (int k = 0; k < 4; k++) expect("in lanes", of_float(floats_of[k]), of_float((float)four[k]));
        }
    }
    {
        volatile double huge = 1e30, nan = to_double(0x7ff8000000000000);
        s64 word;
        int half;
        __asm__("cvttsd2siq %1, %0" : "=r"(word) : "x"(huge));
        expect("too large for 64 bits", (u64)word, 0x8000000000000000);
        __asm__("cvttsd2sil %1, %0" : "=r"(half) : "x"(nan));
        expect("NaN as an integer", (u32)half, 0x80000000);
    }
}

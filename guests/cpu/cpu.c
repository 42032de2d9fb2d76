/*
 * Groups of instructions, each judged by plain C that computes the same in another way (or by results that the compiler computed). A line a
 * group, and a verdict. Instructions that CPUID does not offer are not tried.
 */
#include "check.h"

static u64 wrong, compared;
static const char *group;

void expect(const char *what, u64 got, u64 want) {
    compared++;
    if (got == want) return;
    if (wrong++ == 0) printf("%s: %s: got 0x%lx, want 0x%lx\n", group, what, got, want);
}

u64 value(void) {
    static u64 state = 0x9e3779b97f4a7c15ul;
    static const u64 edges[] = {0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
                                0x7ffffffffffffffful, 0x8000000000000000ul, 0xfffffffffffffffful, 0x5555555555555555ul};
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    if ((state & 3) == 0) return edges[state >> 60];
    return (state & 4) ? state : state >> (state >> 58);
}

/* Bits of CPUID that a group needs. */
#define SSE3 (1u << 0)
#define SSSE3 (1u << 9)
#define CX16 (1u << 13)
#define SSE41 (1u << 19)
#define SSE42 (1u << 20)
#define POPCNT (1u << 23)
#define AES (1u << 25)
#define PCLMUL (1u << 1)
#define BMI1 (1u << 3)
#define BMI2 (1u << 8)

static const struct {
    const char *name;
    void (*run)(void);
    u32 leaf1, leaf7;
} groups[] = {
    {"integers and flags", integers, 0, 0},
    {"bits", bits, POPCNT, BMI1 | BMI2},
    {"multiplication and division", multiplication, 0, 0},
    {"strings", strings, 0, 0},
    {"exchanges", exchanges, CX16, 0},
    {"stack", stacks, 0, 0},
    {"floating point", floats, SSE41, 0},
    {"conversions", conversions, 0, 0},
    {"packed integers", packed_integers, SSE41, 0},
    {"shuffles", shuffles, SSSE3 | SSE41, 0},
    {"text", text, SSE42, 0},
    {"AES and carry-less products", crypto, AES | PCLMUL, 0},
};

int main(void) {
    u32 a, b, c1, d, b7, c7;
    u64 failed = 0, skipped = 0;
    cpuid(1, 0, &a, &b, &c1, &d);
    cpuid(7, 0, &a, &b7, &c7, &d);
    for (unsigned i = 0; i < sizeof groups / sizeof *groups; i++) {
        group = groups[i].name;
        if ((groups[i].leaf1 & ~c1) != 0 || (groups[i].leaf7 & ~b7) != 0) {
            printf("%s: CPUID does not offer it\n", group);
            skipped++;
            continue;
        }
        wrong = compared = 0;
        groups[i].run();
        printf("%s: %lu compared, %lu wrong\n", group, compared, wrong);
        failed += wrong != 0;
    }
    if (failed != 0) printf("%lu groups FAILED\n", failed);
    else if (skipped != 0) printf("all right, %lu groups not tried\n", skipped);
    else puts("all right");
    return failed != 0;
}

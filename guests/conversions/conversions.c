/*
 * Converts ranges of its memory between private and shared with MAP_GPA_RANGE and checks what each conversion must do to the bytes:
 * the range reads as zeros on the other side (its old pages were discarded), what is written stays, neighbours are untouched.
 * Ranges are those of KVM's private_mem_conversions_test.
 */
#include "guest.h"

#define AREA (16 * MIB)
#define AREA_SIZE (4 * MIB)

#define PRIVATE_BEFORE 0xccccccccccccccccul
#define SHARED 0x5555555555555555ul
#define PRIVATE_AFTER 0xa3a3a3a3a3a3a3a3ul

static const struct {
    u64 offset, size;
    const char *name;
} ranges[] = {
    {0, PAGE, "{0, 4K}"},        {0, 2 * MIB, "{0, 2M}"},    {PAGE, PAGE, "{4K, 4K}"},
    {PAGE, 2 * MIB, "{4K, 2M}"}, {2 * MIB, PAGE, "{2M, 4K}"},
};

static int failures;

static void expect(const char *range, const char *what, u64 start, u64 bytes, u64 word) {
    u64 at = first_other(start, bytes, word);
    if (at == 0) return;
    failures++;
    printf("%s: %s: at 0x%lx got 0x%lx, want 0x%lx\n", range, what, at, *(volatile u64 *)at, word);
}

/* The area around the range, which no conversion may touch. */
static void expect_neighbours(const char *range, const char *when, u64 start, u64 bytes) {
    expect(range, when, AREA, start - AREA, PRIVATE_BEFORE);
    expect(range, when, start + bytes, AREA + AREA_SIZE - start - bytes, PRIVATE_BEFORE);
}

static s64 convert(u64 start, u64 bytes, int to_private, int with_vmcall) {
    u64 attributes = to_private ? MAP_GPA_RANGE_ENCRYPTED : 0;
    return with_vmcall ? vmcall(KVM_HC_MAP_GPA_RANGE, start, bytes / PAGE, attributes)
                       : vmmcall(KVM_HC_MAP_GPA_RANGE, start, bytes / PAGE, attributes);
}

static void expect_answer(const char *what, s64 got, s64 want) {
    if (got == want) return;
    failures++;
    printf("%s: hypercall answered %ld, want %ld\n", what, got, want);
}

int main(void) {
    if (ram_top < AREA + AREA_SIZE + MIB) {
        printf("needs %lu MiB of RAM, has %lu\n", (AREA + AREA_SIZE + MIB) / MIB, ram_top / MIB);
        return 1;
    }
    for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const char *name = ranges[i].name;
        u64 start = AREA + ranges[i].offset, bytes = ranges[i].size;
        int with_vmcall = (int)(i & 1);
        int before = failures;

        fill(AREA, AREA_SIZE, PRIVATE_BEFORE);

        s64 answer = convert(start, bytes, 0, with_vmcall);
        if (answer != 0) {
            printf("%s: to shared: hypercall answered %ld\n", name, answer);
            return 1;
        }
        expect(name, "shared for the first time", start, bytes, 0);
        expect_neighbours(name, "neighbour after the change to shared", start, bytes);
        fill(start, bytes, SHARED);
        expect(name, "shared, written", start, bytes, SHARED);
        expect_neighbours(name, "neighbour after a shared write", start, bytes);

        answer = convert(start, bytes, 1, with_vmcall);
        if (answer != 0) {
            printf("%s: to private: hypercall answered %ld\n", name, answer);
            return 1;
        }
        expect(name, "private again, after the punch", start, bytes, 0);
        expect_neighbours(name, "neighbour after the change to private", start, bytes);
        fill(start, bytes, PRIVATE_AFTER);
        expect(name, "private, written", start, bytes, PRIVATE_AFTER);
        expect_neighbours(name, "neighbour after a private write", start, bytes);

        printf("%s to shared and back by %s: %s\n", name, with_vmcall ? "vmcall" : "vmmcall",
               failures == before ? "zeros after each punch, neighbours intact" : "FAILED");
    }

    /* A conversion to what a range already is changes nothing. */
    fill(AREA, PAGE, PRIVATE_BEFORE);
    fill(AREA + PAGE, PAGE, PRIVATE_AFTER);
    expect_answer("unaligned address", convert(AREA + 1, PAGE, 1, 0), -22);
    expect_answer("no pages", convert(AREA, 0, 1, 0), -22);
    expect_answer("wrap-around", convert(~0ul - 4095, 2 * PAGE, 1, 0), -22);
    expect("refused", "bytes after refused conversions", AREA, PAGE, PRIVATE_BEFORE);
    expect("refused", "bytes after refused conversions", AREA + PAGE, PAGE, PRIVATE_AFTER);
    printf("refused conversions: %s\n", failures == 0 ? "-22, nothing changed" : "see above");
    puts(failures == 0 ? "conversions: all as they should be" : "conversions: FAILED");
    return failures == 0 ? 0 : 1;
}

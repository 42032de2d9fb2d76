/*
 * The guest's own say over its pages (PVALIDATE, RMPADJUST), the C-bit in its page tables, and the conversation about both with the host: page state change by a list in
 * the GHCB (Linux arch/x86/coco/sev/core.c: vmgexit_psc; reference facts 5.4).
 */
#include "snp/snp.h"

#define FAIL_SIZE_MISMATCH 6
#define PTE_ADDRESS 0x7fffffffff000ul
#define PTE_LARGE 0x80ul
#define PTE_TABLE (0x23ul | C_BIT)
#define TABLES 64
#define ENTRIES_MAX 250
#define OP_PRIVATE 1ul
#define OP_SHARED 2ul

extern u8 _start[], _end[];

/* For 2 MiB mappings that are split. */
static u64 tables[TABLES][512] __attribute__((aligned(4096)));
static unsigned tables_used;

int pvalidate(u64 address, int large, int validate) {
    u64 code;
    u8 unchanged;
    __asm__ volatile("pvalidate\n\tsetc %1" : "=a"(code), "=q"(unchanged) : "a"(address), "c"(large), "d"(validate) : "cc", "memory");
    if (code != 0) return (int)code;
    return unchanged ? -1 : 0;
}

u64 rmpadjust(u64 address, u64 attributes) {
    u64 code;
    __asm__ volatile("rmpadjust" : "=a"(code) : "a"(address), "c"(0ul), "d"(attributes) : "cc", "memory");
    return code;
}

/* A page that is validated twice may be two pages: the host could show the guest an old one later. */
static void change(u64 start, u64 pages, int validate) {
    u64 end = start + pages * PAGE;
    while (start < end) {
        if (start % LARGE_PAGE == 0 && end - start >= LARGE_PAGE) {
            int code = pvalidate(start, 1, validate);
            if (code == 0) {
                start += LARGE_PAGE;
                continue;
            }
            if (code != FAIL_SIZE_MISMATCH) terminate(1, END_PVALIDATE);
        }
        u64 stop = (start + LARGE_PAGE) & ~(LARGE_PAGE - 1);
        if (stop > end) stop = end;
        for (; start < stop; start += PAGE)
            if (pvalidate(start, 0, validate) != 0) terminate(1, END_PVALIDATE);
    }
}

u64 validate_memory(void) {
    const u64 ranges[][2] = {
        {0, 0x1000},
        {0xc000, 0xd000},
        {0xe000, (u64)_start & ~(PAGE - 1)},
        {((u64)_end + PAGE - 1) & ~(PAGE - 1), ram_top},
    };
    u64 pages = 0;
    for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        u64 count = (ranges[i][1] - ranges[i][0]) / PAGE;
        change(ranges[i][0], count, 1);
        pages += count;
    }
    return pages;
}

/* The entry that maps the 4 KiB page; a 2 MiB mapping around it is split. */
static volatile u64 *entry_of(u64 address) {
    volatile u64 *large = (volatile u64 *)(0x4000 + (address >> 21) * 8);
    if (*large & PTE_LARGE) {
        if (tables_used == TABLES) terminate(0, 0);
        u64 *table = tables[tables_used++];
        for (u64 i = 0; i < 512; i++) table[i] = (*large & ~PTE_LARGE) + i * PAGE;
        *large = (u64)table | PTE_TABLE;
    }
    return (volatile u64 *)(*large & PTE_ADDRESS) + (address >> 12 & 511);
}

static void map(u64 start, u64 pages, u64 c_bit) {
    for (u64 at = start; at < start + pages * PAGE; at += PAGE) {
        volatile u64 *entry = entry_of(at);
        *entry = (*entry & ~C_BIT) | c_bit;
        __asm__ volatile("invlpg (%0)" : : "r"(at) : "memory");
    }
}

void map_shared(u64 start, u64 pages) { map(start, pages, 0); }

/* Tells the host, entry by entry, and again while it says that it is not through. */
static void announce(u64 start, u64 pages, u64 operation) {
    volatile u8 *buffer = this_vcpu()->ghcb + GHCB_BUFFER;
    volatile u16 *current = (volatile u16 *)buffer, *last = current + 1;
    volatile u64 *entries = (volatile u64 *)(buffer + 8);
    while (pages > 0) {
        unsigned count = 0;
        while (pages > 0 && count < ENTRIES_MAX) {
            int large = start % LARGE_PAGE == 0 && pages >= 512;
            entries[count++] = start | operation << 52 | (u64)large << 56;
            pages -= large ? 512 : 1;
            start += large ? LARGE_PAGE : PAGE;
        }
        *(volatile u64 *)buffer = 0;
        *last = (u16)(count - 1);
        while (*current <= *last) {
            u16 before = *current, end = *last;
            ghcb_set(GHCB_SCRATCH, (u64)buffer);
            if (ghcb_event(EVENT_PAGE_STATE_CHANGE, 0, 0) != 0 || ghcb_get(GHCB_INFO2) != 0) terminate(1, END_PAGE_STATE);
            /* The host may neither go back nor change the list's end. */
            if (*last != end || *current < before) terminate(1, END_PAGE_STATE);
        }
    }
}

void make_shared(u64 start, u64 pages) {
    change(start, pages, 0);
    announce(start, pages, OP_SHARED);
    map(start, pages, 0);
}

void make_private(u64 start, u64 pages) {
    map(start, pages, C_BIT);
    announce(start, pages, OP_PRIVATE);
    change(start, pages, 1);
}

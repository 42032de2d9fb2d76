/*
 * Writes to pages of an area in five ways, each in a pattern of its own, so that a host that logs dirty pages can compare. After each
 * phase its number goes to port 0x80; what was written to since the phase before is dirty then, and no other page of the area.
 *
 *   1  a store into every third page
 *   2  whole pages by a string instruction: the first and the last of every 64
 *   3  stores that cross into the next page, from every page 17n + 5
 *   4  a locked addition in pages 0 and 2^n
 *   5  reads of every page
 */
#include "guest.h"

#define AREA (16 * MIB)
#define PAGES 1024ul
#define PHASE_PORT 0x80

static void phase(u8 number) { outb(PHASE_PORT, number); }

int main(void) {
    if (ram_top < AREA + PAGES * PAGE + MIB) {
        printf("needs %lu MiB of RAM, has %lu\n", (AREA + PAGES * PAGE + MIB) / MIB, ram_top / MIB);
        return 1;
    }
    phase(0);

    for (u64 i = 0; i < PAGES; i += 3) *(volatile u64 *)(AREA + i * PAGE + i * 8 % PAGE) = i;
    phase(1);

    for (u64 i = 0; i < PAGES; i++)
        if (i % 64 == 0 || i % 64 == 63) fill(AREA + i * PAGE, PAGE, 0xd1d1d1d1d1d1d1d1ul);
    phase(2);

    for (u64 i = 5; i + 1 < PAGES; i += 17) *(volatile u64 *)(AREA + i * PAGE + PAGE - 4) = i;
    phase(3);

    for (u64 i = 0; i < PAGES; i = i == 0 ? 1 : i * 2)
        __asm__ volatile("lock addq $1, %0" : "+m"(*(volatile u64 *)(AREA + i * PAGE + 128)));
    phase(4);

    u64 sum = 0;
    for (u64 i = 0; i < PAGES; i++) sum += *(volatile u64 *)(AREA + i * PAGE + 128);
    phase(5);

    printf("dirty: 5 phases over %lu pages, sum 0x%lx\n", PAGES, sum);
    return 0;
}
